"""Weights of an earlier run to start from: the second phase of a published recipe."""

from dataclasses import dataclass

from torch import Tensor, nn

from dmd_api.errors import BadInputError

OPTIONAL = "head."
"""An earlier run without a GAN term has no head: it then starts with a new one."""


@dataclass(frozen=True)
class InitialWeights:
    """Weights of an earlier run, by name; None: the teacher's."""

    generator: dict[str, Tensor] | None = None
    fake_score: dict[str, Tensor] | None = None


TEACHERS = InitialWeights()


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
