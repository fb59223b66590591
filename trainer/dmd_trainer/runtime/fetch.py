"""From a URI to a local path: teachers, feature networks, data sets."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError, InfrastructureError
from dmd_api.paths import below
from dmd_api.uris import parse_uri
from dmd_trainer.runtime.sources import check_source, is_own
from dmd_trainer.runtime.storage import CLAIMS, Storage, open_storage

ASSETS = Path(str(files("dmd_trainer"))) / "assets"
"""The models and data of `builtin://`, which ship with the trainer."""
ABOUT = ("model_index.json", "README.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""The files at the top of a pipeline's repository that are taken; an export passes on all but the first."""
OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite")
"""Weights that nothing here reads."""
WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"}
NOT_LOADED = (*OTHER_FRAMEWORKS, "*.bin", "*.ckpt", "*.pt", "*.pth", "*/*.*.safetensors")
"""Weights in a pipeline's folders that diffusers does not load: pickled ones, and variants (NAME.fp16.safetensors)."""


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
            path = _from_hub(parsed.path)
        case "models":
            path = _from_registry(uri, scratch)
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


def _from_hub(name: str) -> Path:
    """A repository's files in the hub's cache, which a node's processes share; its locks let one of them download."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    at = revision or None
    try:
        try:
            index = json.loads(Path(hf_hub_download(repository, "model_index.json", revision=at)).read_text())
        except EntryNotFoundError:  # no pipeline, or the hub cannot be asked
            return Path(snapshot_download(repository, revision=at, ignore_patterns=[*OTHER_FRAMEWORKS]))
        if not isinstance(index, dict):
            raise ValueError("model_index.json is no JSON object")
        wanted = [*ABOUT, *(f"{folder}/*" for folder in _folders(index))]
        return Path(snapshot_download(repository, revision=at, allow_patterns=wanted, ignore_patterns=[*NOT_LOADED]))
    except GatedRepoError as error:
        raise BadInputError(
            f"hf://{name}: access is gated; accept its terms on the hub and give spec.huggingFace.credentialsSecretRef "
            "(locally: HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInputError(
            f"hf://{name}: no such repository, or a private one; check the name, or give HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise BadInputError(f"hf://{name}: there is no revision {revision}; check the name after the @") from error
    except ValueError as error:  # an index that is no JSON, or a name that leads out of the repository
        raise BadInputError(f"hf://{name}: its files cannot be taken ({error}); check the repository") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InfrastructureError(f"hf://{name}: the hub does not answer ({error}); is there a network?") from error


def _folders(index: dict[str, Any]) -> list[str]:
    """The folders of a pipeline's parts: [library, class] each, and [null, null] for a part that is absent.

    `DiffusionPipeline.download` takes the same, but costs ten seconds of imports where nothing else needs diffusers.
    """
    return [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]


def _from_registry(uri: str, scratch: Path) -> Path:
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(scratch / "fetched")))
    except mlflow.exceptions.MlflowException as error:
        raise BadInputError(f"{uri}: {error.message}; check the name and the tracking server") from error
