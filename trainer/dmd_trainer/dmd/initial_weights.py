"""Weights of an earlier run to start from: the second phase of a published recipe."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.manifest import Location
from dmd_trainer.runtime.fetch import local_path

OPTIONAL = "head."
"""An earlier run without a GAN term has no head: it then starts anew."""


def read_initial_weights(location: Location | None, field: str, scratch: Path) -> dict[str, Tensor] | None:
    """The state dict that `spec.method.initFrom.FIELD` names: a .safetensors file, or a pipeline's folder.

    Raises:
        BadInputError: there are no weights.
    """
    if location is None:
        return None
    path = local_path(location.uri, scratch)
    files = [path]
    if path.is_dir():
        files = _network_files(path)
        if not files:
            raise BadInputError(
                f"spec.method.initFrom.{field}: {location.uri}: no .safetensors in it; name an earlier run's weights"
            )
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"spec.method.initFrom.{field}: {location.uri} cannot be loaded ({error})") from error


def _network_files(folder: Path) -> list[Path]:
    """A pipeline's network, which may be in several files, or the latest of the weights that a run left."""
    for part in ("unet", "transformer"):
        if found := sorted((folder / part).glob("*.safetensors")):
            return found
    return sorted(folder.glob("*.safetensors"))[-1:]


def load_initial_weights(module: nn.Module, weights: dict[str, Tensor] | None, field: str) -> None:
    """Loads weights into a network; None leaves it as it is.

    Raises:
        BadInputError: they are another network's.
    """
    if weights is not None:
        module.load_state_dict(check_initial_weights(module, weights, field), strict=False)


def check_initial_weights(module: nn.Module, weights: dict[str, Tensor] | None, field: str) -> dict[str, Tensor]:
    """The weights by the names that `module` has for them.

    Raises:
        BadInputError: they are another network's.
    """
    if weights is None:
        return {}
    own = module.state_dict()
    # A fake score may start from a plain network's weights: its own lie below `network.`.
    if any(f"network.{name}" in own for name in weights):
        weights = {f"network.{name}": tensor for name, tensor in weights.items()}
    # A second phase without a GAN term has no use for the first's head.
    weights = {name: tensor for name, tensor in weights.items() if name in own or not name.startswith(OPTIONAL)}
    missing = [name for name in own if name not in weights and not name.startswith(OPTIONAL)]
    wrong = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    if missing or wrong:
        example = (missing or wrong)[0]
        raise BadInputError(
            f"spec.method.initFrom.{field}: these are not this network's weights ({len(missing)} missing, {len(wrong)} "
            f"that do not fit, such as {example}); use a run of the same teacher"
        )
    return weights
