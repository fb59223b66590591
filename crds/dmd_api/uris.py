"""URIs of teachers, data, storage and tracking servers: their schemes and their parts."""

import difflib
from dataclasses import dataclass

from dmd_api.paths import check_path

READABLE_SCHEMES = ("hf", "s3", "models", "pvc", "file", "builtin")
"""The sources of teachers, data and networks; `builtin://` names what ships with the trainer."""
STORAGE_SCHEMES = ("s3", "pvc", "file")
TRACKING_SCHEMES = ("http", "https", "sqlite", "file")
RELATIVE_SCHEMES = ("hf", "s3", "models", "pvc", "builtin")
"""The schemes whose paths count from a place that they must not leave: a claim, a bucket, what ships."""


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
        ValueError: it has no scheme, one that does not fit, nothing behind it, or a path that may lead elsewhere.
    """
    scheme, separator, path = text.partition(":/")
    known = ", ".join("models:/" if s == "models" else f"{s}://" for s in schemes)
    if not separator:
        raise ValueError(f"{text!r} has no scheme; write one of {known}")
    if scheme not in schemes:
        close = difflib.get_close_matches(scheme, schemes, 1)
        hint = f"did you mean {close[0]}://?" if close else f"use one of {known}"
        raise ValueError(f"{text!r}: the scheme {scheme}:// is not known here; {hint}")
    path = path.removeprefix("/")
    if not path.strip("/"):
        raise ValueError(f"{text!r} names nothing behind its scheme")
    if scheme in RELATIVE_SCHEMES:
        check_path(path.rstrip("/"))
    return Uri(scheme, path)
