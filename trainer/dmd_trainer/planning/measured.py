"""What is measured on networks without data, and kept: torch is needed only for what was not measured before."""

from typing import NamedTuple

from dmd_api.spec import Lora
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.gpus import Flops
from dmd_trainer.planning.kept import kept
from dmd_trainer.planning.shape import StepShape


class Sizes(NamedTuple):
    """The numbers of weights of a run's networks.

    Attributes:
        network: the denoising network.
        largest_block: its largest part that is gathered at once where weights are sharded.
        generator: what is trained of the generator: all of it, or its adapters.
        adapters: the generator's low-rank adapters; 0 without them.
        fake_score: the fake score with the GAN head; 0 in a run without one.
        decoder: the VAE.
        encoders: the text encoders.
    """

    network: int
    largest_block: int
    generator: int
    adapters: int
    fake_score: int
    decoder: int
    encoders: int


def measure_activations(architecture: Architecture, shape: StepShape) -> int:
    """The most bytes that a step's tensors hold at once, without weights, their gradients and states."""

    def measure() -> list[int]:
        from dmd_trainer.planning import fake_step

        return [fake_step.measure_activations(architecture, shape)]

    return int(kept("activations", architecture.configuration, shape, measure=measure)[0])


def count_flops(architecture: Architecture) -> Flops:
    """The floating-point operations of one sample's forward passes."""

    def measure() -> list[float]:
        from dmd_trainer.planning import flops

        return list(flops.count_flops(architecture))

    return Flops(*kept("operations", architecture.configuration, measure=measure))


def network_sizes(architecture: Architecture, matching: bool, gan: bool, lora: Lora | None) -> Sizes:
    """The numbers of weights of the networks of a run.

    Args:
        architecture: of its teacher.
        matching: there is a fake score.
        gan: which has a GAN head.
        lora: the generator's adapters.
    """

    def measure() -> list[int]:
        from dmd_trainer.planning.sizes import count_network_sizes

        return list(count_network_sizes(architecture, matching, gan, lora))

    found = kept("sizes", architecture.configuration, matching, gan, lora, measure=measure)
    return Sizes(*map(int, found))
