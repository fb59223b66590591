"""URIs of teachers, data, storage and tracking servers: their schemes and their parts."""

import difflib
import re
from dataclasses import dataclass

from dmd_api.paths import check_path

READABLE_SCHEMES = ("hf", "s3", "models", "pvc", "file", "builtin")
"""The sources of teachers, data and networks; `builtin://` names what ships with the trainer."""
STORAGE_SCHEMES = ("s3", "pvc", "file")
TRACKING_SCHEMES = ("http", "https", "sqlite", "file")
RELATIVE_SCHEMES = ("hf", "s3", "models", "pvc", "builtin")
"""The schemes whose paths count from a place that they must not leave: a claim, a bucket, what ships."""
SERVER_SCHEMES = ("http", "https")

CREDENTIALS = r"(?is)^https?:/.*[@?]|^s3:/+[^/]*[@:]|^[^:]*://?[^/]*:.*@"
"""What has a password in it, or may have: user:password@ in any URI, a user or a query of a server, keys of a bucket.

Read by Python and by CEL alike."""
CREDENTIALS_MESSAGE = (
    "holds a user name, a password or a query, which everyone could read who can read the run; leave it out: "
    "credentials come from a Secret (credentialsSecretRef), on a laptop from environment variables"
)
PLACE_MESSAGE = (
    "names no place: behind its scheme there is nothing, or a segment that is empty, . or .., or a backslash; write it "
    "like s3://bucket/folder"
)
_MASKED = re.compile(
    r"\b(?:((?!(?:hf|models|s3|pvc|file|sqlite|builtin):)[a-z][a-z0-9+.-]*:/+)[^\s'\"]*"
    r"|([a-z][a-z0-9+.-]*:/+)[^\s'\"/]*:[^\s'\"]*)@",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Uri:
    """A URI's scheme, and all that follows `://` (for `models:/`: the `/`)."""

    scheme: str
    path: str


def parse_uri(text: str, schemes: tuple[str, ...] = READABLE_SCHEMES) -> Uri:
    """Splits a URI into its parts.

    Args:
        text: e.g. `hf://stabilityai/sdxl`, `models:/digits-onestep@champion`.
        schemes: the schemes that fit here.

    Raises:
        ValueError: it has no scheme, one that does not fit, nothing behind it, a password in it, or a path that may
            lead elsewhere.
    """
    if re.search(CREDENTIALS, text):
        raise ValueError(CREDENTIALS_MESSAGE)
    scheme, separator, path = text.partition(":/")
    known = ", ".join("models:/" if s == "models" else f"{s}://" for s in schemes)
    if not separator:
        raise ValueError(f"{text.rpartition('@')[2]!r} has no scheme; write one of {known}")
    if scheme not in schemes:
        close = difflib.get_close_matches(scheme, schemes, 1)
        hint = f"did you mean {close[0]}://?" if close else f"use one of {known}"
        raise ValueError(f"{masked(text)!r}: the scheme {scheme}:// is not known here; {hint}")
    path = path.removeprefix("/")
    if not path.strip("/"):
        raise ValueError(f"{text!r} names nothing behind its scheme")
    if scheme in RELATIVE_SCHEMES:
        check_path(path.rstrip("/"))
    return Uri(scheme, path)


def uri_pattern(schemes: tuple[str, ...]) -> str:
    """What `parse_uri` takes, as a pattern that CEL reads: Go's, which looks neither ahead nor behind."""
    segment = r"([^./\\\x00][^/\\\x00]*|\.[^./\\\x00][^/\\\x00]*|\.\.[^/\\\x00]+)"
    below = [scheme for scheme in schemes if scheme in RELATIVE_SCHEMES]
    anywhere = [scheme for scheme in schemes if scheme not in RELATIVE_SCHEMES]
    forms = [f"({'|'.join(below)}):/{{1,2}}{segment}(/{segment})*/*"] if below else []
    forms += [rf"({'|'.join(anywhere)}):/(.|\n)*[^/](.|\n)*"] if anywhere else []
    return f"^({'|'.join(forms)})$"


def masked(text: str) -> str:
    """Text as it may be shown: in URIs, such as a tracking server's from the environment, *** for credentials."""
    return _MASKED.sub(lambda found: f"{found[1] or found[2]}***@", text)
