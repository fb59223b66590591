"""From a URI to a local path: teachers, feature networks, data sets."""

import hashlib
from importlib.resources import files
from pathlib import Path

from dmd_api.errors import BadInputError
from dmd_api.paths import below
from dmd_api.uris import parse_uri
from dmd_trainer.runtime.hub import from_hub
from dmd_trainer.runtime.registry import from_registry
from dmd_trainer.runtime.sources import check_source, is_own
from dmd_trainer.runtime.storage import CLAIMS, Storage, open_storage

ASSETS = Path(str(files("dmd_trainer"))) / "assets"
"""The models and data of `builtin://`, which ship with the trainer."""
WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"}
"""The ends of the names of weights."""


def local_path(uri: str, scratch: Path, *, headers_only: bool = False) -> Path:
    """The file or folder that `uri` names, downloaded below `scratch` where it is remote.

    Args:
        uri: of any scheme that can be read from.
        scratch: where downloads go.
        headers_only: that is enough of weights: of a bucket's, no more is downloaded.

    Raises:
        BadInputError: there is nothing at the URI, what is there leads elsewhere, or its scheme cannot be read from.
        InfrastructureError: the hub or the storage does not answer.
    """
    try:
        parsed = parse_uri(uri)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    match parsed.scheme:
        case "builtin":
            path = ASSETS / parsed.path
        case "file":
            path = Path(parsed.path)
        case "pvc":
            path = CLAIMS / parsed.path
            if not is_own(path, CLAIMS / parsed.path.partition("/")[0]):
                raise BadInputError(f"{uri}: {path} is a link that leads out of the claim; name the place itself")
        case "s3":
            path = _from_storage(uri, scratch, headers_only=headers_only)
        case "hf":
            path = from_hub(parsed.path)
        case "models":
            path = from_registry(uri, scratch)
        case other:
            raise BadInputError(f"{uri}: {other}:// cannot be read from; use file://, s3://, hf:// or models:/")
    if not path.exists():
        raise BadInputError(f"{uri}: there is nothing at {path}; check the URI")
    check_source(path, uri)
    return path


def _from_storage(uri: str, scratch: Path, *, headers_only: bool) -> Path:
    def download(storage: Storage, key: str, path: Path) -> None:
        weights = headers_only and path.suffix in WEIGHTS
        (storage.download_header if weights else storage.download)(key, path)

    storage = open_storage(uri)
    # The hash tells `a/b_c` from `a/b/c`: a folder as deep as the URI would hold that of a longer URI, too.
    name = uri.removeprefix("s3://").strip("/")
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    folder = scratch / ("headers" if headers_only else "fetched") / f"{name.rpartition('/')[2]}-{digest}"
    keys = storage.list("")
    if not keys:
        # Not a folder: the URI may name one object.
        parent, _, name = uri.rpartition("/")
        target = folder / name
        download(open_storage(parent), name, target)
        return target
    for key, path in [(key, below(folder, key, uri)) for key in keys]:  # all are looked at before one is written
        download(storage, key, path)
    return folder
