"""Repositories of the Hugging Face hub, models and data sets, in the cache that a node's processes share."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

from dmd_api.errors import BadInputError, InfrastructureError, first_line
from dmd_trainer.runtime.certificates import NOT_TRUSTED, is_untrusted

ABOUT = ("model_index.json", "README.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""The files at the top of a pipeline's repository that are taken; an export passes on all but the first."""
OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite")
"""Weights that nothing here reads."""
NOT_LOADED = (*OTHER_FRAMEWORKS, "*.bin", "*.ckpt", "*.pt", "*.pth", "*/*.*.safetensors")
"""Weights in a pipeline's folders that diffusers does not load: pickled ones, and variants (NAME.fp16.safetensors)."""


@dataclass(frozen=True)
class HubPath:
    """A place on the hub.

    Attributes:
        uri: as it was given.
        kind: of its repository.
        repository: OWNER/NAME.
        path: of a file or folder in it; "" for all of it.
        revision: a branch, tag or commit; None for the main branch.
    """

    uri: str
    kind: Literal["model", "dataset"]
    repository: str
    path: str
    revision: str | None


def hub_path(path: str) -> HubPath:
    """The place that `[datasets/]OWNER/NAME[/PATH][@REVISION]` names.

    Raises:
        BadInputError: it names none.
    """
    uri = f"hf://{path}"
    place, _, revision = path.partition("@")
    parts = place.rstrip("/").split("/")
    kind: Literal["model", "dataset"] = "dataset" if parts[0] == "datasets" else "model"
    owner_and_name, below = (parts[1:3], parts[3:]) if kind == "dataset" else (parts[:2], parts[2:])
    if not owner_and_name or {"", ".", ".."} & {*owner_and_name, *below}:
        raise BadInputError(f"{uri}: write hf://[datasets/]OWNER/NAME[/PATH][@REVISION]")
    return HubPath(uri, kind, "/".join(owner_and_name), "/".join(below), revision or None)


def from_hub(path: str) -> Path:
    """The local copy of what `[datasets/]OWNER/NAME[/PATH][@REVISION]` names.

    Of a pipeline what diffusers loads is taken, of all else everything below the path. Of several processes one
    downloads a file: the cache has locks.

    Raises:
        BadInputError: there is no such thing, or not for these credentials.
        InfrastructureError: the hub does not answer, and the cache does not have it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    place = hub_path(path)
    below = f"{escape(place.path)}/" if place.path else ""
    wanted = [escape(place.path), f"{below}*"] if place.path else None
    needless: tuple[str, ...] = OTHER_FRAMEWORKS
    with _asking(place):
        if place.kind == "model":
            try:
                file = hf_hub_download(
                    place.repository, "model_index.json", subfolder=place.path or None, revision=place.revision
                )
                folders = _folders(json.loads(Path(file).read_text()))
                wanted = [f"{below}{name}" for name in (*ABOUT, *(f"{folder}/*" for folder in folders))]
                needless = NOT_LOADED
            except EntryNotFoundError:  # no pipeline, or the hub cannot be asked
                pass
        found = Path(
            snapshot_download(
                place.repository,
                repo_type=place.kind,
                revision=place.revision,
                allow_patterns=wanted,
                ignore_patterns=[*needless],
            )
        )
    if not (found / place.path).exists():
        raise BadInputError(f"{place.uri}: there is no {place.path} in this repository; check the path")
    return found / place.path


@contextmanager
def _asking(place: HubPath) -> Iterator[None]:
    """Says what was wrong where the hub, or its client, says no.

    Raises:
        BadInputError: there is no such thing, or not for these credentials.
        InfrastructureError: the hub does not answer.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    uri, credentials = place.uri, "spec.huggingFace.credentialsSecretRef (locally: HF_TOKEN)"
    try:
        yield
    except GatedRepoError as error:
        raise BadInputError(f"{uri}: access is gated; accept its terms on the hub and give {credentials}") from error
    except RepositoryNotFoundError as error:
        other = "hf://datasets/OWNER/NAME for a data set" if place.kind == "model" else "hf://OWNER/NAME for a model"
        raise BadInputError(
            f"{uri}: no such {place.kind} repository, or a private one; check the name ({other}), or give {credentials}"
        ) from error
    except RevisionNotFoundError as error:
        raise BadInputError(f"{uri}: there is no revision {place.revision}; check the name after the @") from error
    except HFValidationError as error:
        raise BadInputError(f"{uri}: {place.repository} is no name of a repository; check OWNER/NAME") from error
    except json.JSONDecodeError as error:
        raise BadInputError(f"{uri}: its model_index.json is damaged ({error}); give another revision") from error
    except ValueError as error:  # a name that leads out of the repository
        raise BadInputError(f"{uri}: its files cannot be taken ({error}); check the repository") from error
    except Exception as error:  # of the client's HTTP library and its cache, by whatever name they have in a version
        response = error.response if isinstance(error, HfHubHTTPError) else None
        if response is not None and response.status_code in (401, 403):
            raise BadInputError(f"{uri}: access denied; check {credentials}") from error
        if HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError):
            raise BadInputError(
                f"{uri}: is not in the hub's cache, and HF_HUB_OFFLINE keeps the hub from being asked; fill the cache "
                "below HF_HOME, or allow a network"
            ) from error
        if is_untrusted(error):
            raise BadInputError(f"{uri}: the hub answers, but {NOT_TRUSTED}") from error
        raise InfrastructureError(
            f"{uri}: the hub does not answer ({first_line(error)}); is there a network?"
        ) from error


def _folders(index: Any) -> list[str]:
    """The folders of a pipeline's parts: [library, class] each, and [null, null] for a part that is absent.

    `DiffusionPipeline.download` takes the same, but costs ten seconds of imports where nothing else needs diffusers.
    """
    if not isinstance(index, dict):
        raise ValueError("model_index.json is no JSON object")
    return [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
