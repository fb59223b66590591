"""Certificate authorities that a stage trusts in addition to the public ones, whatever library asks."""

import os
import ssl
from pathlib import Path

from dmd_api import runtime
from dmd_api.errors import BadInputError

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Files of authorities, each in place of the public ones: for the hub's client, for MLflow's, for S3's."""
NOT_TRUSTED = (
    "its certificate is not trusted; give its authority's in spec.caBundle (locally: SSL_CERT_FILE, REQUESTS_CA_BUNDLE "
    "and AWS_CA_BUNDLE)"
)
"""Ends a message about a server whose certificate no known authority has signed, or not for this name."""


def trust_bundle(folder: Path) -> None:
    """Lets this process, and those that it starts, trust the authorities of `DMD_CA_BUNDLE`, if it is set.

    Args:
        folder: where files are written that have to stay: the bundle after the public authorities, or after those that
            the image or the podTemplate sets instead.

    Raises:
        BadInputError: the bundle has no certificates, or cannot be added to what is set.
    """
    bundle = os.environ.get(runtime.CA_BUNDLE)
    if not bundle:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=bundle)
        added = Path(bundle).read_bytes()
    except OSError as error:
        raise BadInputError(
            f"spec.caBundle: {bundle} is no file of certificates in PEM ({error.strerror or error}); correct the "
            "ConfigMap, or the key"
        ) from error
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    for variable in VARIABLES:
        before = Path(os.environ.get(variable) or DEFAULT_CA_BUNDLE_PATH)
        if not before.is_file():
            raise BadInputError(f"{variable}: {before} is no file; spec.caBundle is added to a file in PEM: give one")
        merged = folder / f"{variable}.pem"
        merged.write_bytes(before.read_bytes() + b"\n" + added)
        os.environ[variable] = str(merged)


def is_untrusted(error: BaseException | None) -> bool:
    """Whether a server's certificate is the reason for an error: libraries wrap OpenSSL's own, or quote it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
