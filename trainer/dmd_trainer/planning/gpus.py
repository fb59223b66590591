"""GPUs that a plan knows, and how long a run's passes take on them."""

from dataclasses import dataclass
from typing import NamedTuple

from dmd_api.errors import BadInputError
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage
from dmd_trainer.planning.work import Work

UTILISATION = 0.4
"""The share of its peak that a GPU reaches in such networks."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's published peaks, dense, in operations a second.

    Attributes:
        bf16: of its matrix units.
        fp32: of its other units, which fp32 networks run on.
    """

    bf16: float
    fp32: float

    def peak(self, precision: str) -> float:
        """Operations a second in `training.precision`."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    "A10": Gpu(125e12, 31.2e12),
    "A100": Gpu(312e12, 19.5e12),
    "B200": Gpu(2250e12, 80e12),
    "H100": Gpu(989e12, 67e12),
    "H200": Gpu(989e12, 67e12),
    "L4": Gpu(121e12, 30.3e12),
    "L40S": Gpu(362e12, 91.6e12),
    "RTX4090": Gpu(165e12, 82.6e12),
}


class Flops(NamedTuple):
    """Floating-point operations of a sample's forward pass; a backward pass has about twice as many.

    Attributes:
        network: of the denoising network.
        classification: of it as far as the GAN's head, and of the head; 0 where it can have none.
        decoder: of the VAE's decoder; 0 without one.
    """

    network: float
    classification: float
    decoder: float


def find_gpu(name: str) -> Gpu:
    """Looks a GPU up by its name, whatever the case and spaces.

    Raises:
        BadInputError: it is not known.
    """
    found = {key.lower(): gpu for key, gpu in GPUS.items()}.get(name.lower().replace(" ", ""))
    if found is None:
        raise BadInputError(f"--gpu: {name!r} is not known here; must be one of {', '.join(GPUS)}")
    return found


def stage_seconds(manifest: DMDDistillation, work: Work, flops: Flops, gpu: Gpu) -> dict[Stage, float]:
    """Estimates how long each stage computes on all of its GPUs."""
    training = manifest.spec.training
    rate = UTILISATION * gpu.peak(training.precision)
    # A backward pass is about two forward passes, and one more where activations are computed again.
    trained = 4 if training.activation_checkpointing else 3
    seconds = {}
    for stage in (Stage.PREPARE, Stage.DISTILL, Stage.EVALUATE):
        count = manifest.spec.pair_workers.parallelism if stage == Stage.PREPARE else manifest.world_size
        passes = work.forward.get(stage, 0.0) + trained * work.backward.get(stage, 0.0)
        # Where gradients pass the decoder, its activations are always computed again.
        decoded = work.decoded.get(stage, 0.0) + 4 * work.decoded_backward.get(stage, 0.0)
        classified = work.classified.get(stage, 0.0) + trained * work.classified_backward.get(stage, 0.0)
        operations = passes * flops.network + classified * flops.classification + decoded * flops.decoder
        seconds[stage] = operations / (rate * count)
    return seconds
