"""The bytes that a run leaves in storage."""

from dataclasses import dataclass

from dmd_api.manifest import DMDDistillation
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.measured import Sizes
from dmd_trainer.planning.memory import FLOAT32


@dataclass(frozen=True)
class Stored:
    """Bytes in storage.

    Attributes:
        pairs: all of them together; 0 in a run without pairs.
        checkpoint: one of those that are kept.
        generator: its weights, whole.
    """

    pairs: int
    checkpoint: int
    generator: int


def count_stored(manifest: DMDDistillation, architecture: Architecture, sizes: Sizes) -> Stored:
    """Counts what a run of these networks stores."""
    regression = manifest.spec.method.regression
    channels, height, width = architecture.sample_shape
    image = channels * height * width * FLOAT32
    # Generator, EMA and fake score, and two moments of what is trained.
    numbers = 2 * (sizes.network + sizes.adapters) + sizes.fake_score + 2 * (sizes.generator + sizes.fake_score)
    return Stored(
        pairs=0 if regression is None else 2 * regression.pairs * image,
        checkpoint=numbers * FLOAT32,
        generator=sizes.network * FLOAT32,
    )
