"""Reads the weights of an earlier run, from a file or from a pipeline's folder."""

from pathlib import Path

import torch
from torch import Tensor

from dmd_api.errors import BadInputError, refusing
from dmd_api.spec import Location
from dmd_trainer.families.weights import read_weights
from dmd_trainer.runtime.fetch import local_path


def read_initial_weights(
    location: Location | None, field: str, scratch: Path, device: torch.device | None = None
) -> dict[str, Tensor] | None:
    """The state dict that `spec.method.initFrom.FIELD` names: a .safetensors file, or a pipeline's folder.

    Args:
        location: the manifest's.
        field: its name, for messages.
        scratch: where it is copied to when it is remote.
        device: the meta device, if only names and shapes are wanted; otherwise the CPU.

    Raises:
        BadInputError: there are no weights.
    """
    if location is None:
        return None
    path = local_path(location.uri, scratch, headers_only=device is not None)
    files = [path]
    if path.is_dir():
        files = _network_files(path)
        if not files:
            raise BadInputError(
                f"spec.method.initFrom.{field}: {location.uri}: no .safetensors in it; name an earlier run's weights"
            )
    what = f"spec.method.initFrom.{field}: {location.uri} cannot be loaded"
    with refusing(what, "name the .safetensors of an earlier run"):
        return {name: tensor for file in files for name, tensor in read_weights(file, device).items()}


def _network_files(folder: Path) -> list[Path]:
    """A pipeline's network, which may be in several files, or the latest of the weights that a run left."""
    for part in ("unet", "transformer"):
        if found := sorted((folder / part).glob("*.safetensors")):
            return found
    return sorted(folder.glob("*.safetensors"))[-1:]
