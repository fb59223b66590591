"""Measuring a sampler: features of its images, then metrics against real ones, together with all ranks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dmd_trainer.conditions import Conditions, to_device
from dmd_trainer.denoiser import Condition
from dmd_trainer.distributed import rank_and_world_size
from dmd_trainer.evaluation import metrics
from dmd_trainer.evaluation.features import FeatureExtractor
from dmd_trainer.keyed import Draws

Sampler = Callable[[Tensor, Condition], Tensor]
"""(unit-variance noise [B, C, H, W], condition) -> images [B, C, H, W]: a generator, or the teacher's solver."""


@dataclass(frozen=True)
class Measured:
    """What is known of a set of generated images.

    Attributes:
        features: [N, D], float32, on the CPU.
        correct: [N], bool: whether the feature network finds the class that was asked for; None without classes.
    """

    features: Tensor
    correct: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Which images are generated to be measured: keyed, so that any number of ranks measures the same ones.

    Attributes:
        count: how many.
        seed: the run's.
        batch_size: how many at once.
        shape: (C, H, W).
        conditions: what conditions are drawn from.
        device: where they are generated.
    """

    count: int
    seed: int
    batch_size: int
    shape: tuple[int, int, int]
    conditions: Conditions
    device: torch.device


@torch.inference_mode()
def measure(
    sampler: Sampler,
    extractor: FeatureExtractor,
    samples: Samples,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Generates and extracts, each rank its batches; the same complete result on every rank, in global order.

    Args:
        sampler: what is measured.
        extractor: the feature network.
        samples: which images.
        on_batch: told after each batch how many images all ranks made; may raise to stop.
    """
    rank, world_size = rank_and_world_size()
    starts = range(0, samples.count, samples.batch_size)
    features: list[Tensor] = []
    correct: list[Tensor] = []
    for start in starts[rank::world_size]:
        indices = range(start, min(start + samples.batch_size, samples.count))
        draws = Draws(samples.seed, "evaluation", 0, indices)
        condition = to_device(samples.conditions.draw(draws), samples.device)
        # What is measured is what a pipeline shows: images clipped to [-1, 1].
        images = sampler(draws.normal(samples.shape).to(samples.device), condition).clamp(-1, 1)
        found, predicted = extractor.extract(images)
        features.append(found.float().cpu())
        if predicted is not None and "class_labels" in condition:
            correct.append((predicted == condition["class_labels"]).cpu())
        on_batch(len(indices) * world_size)
    parts = [(features, correct)]
    if world_size > 1:
        parts = [([], [])] * world_size
        dist.all_gather_object(parts, (features, correct))
    # Batch i was rank i mod N's: taking turns restores the global order.
    ordered = [(f[turn], c[turn] if c else None) for turn in range(len(starts)) for f, c in parts if turn < len(f)]
    found_all = torch.cat([f for f, _ in ordered])
    hits = [c for _, c in ordered if c is not None]
    return Measured(found_all, torch.cat(hits) if hits else None)


def score(measured: Measured, real: Tensor, wanted: Collection[str]) -> dict[str, float]:
    """The metrics of the manifest's names, FID always among them, against real features [N, D]."""
    scores = {"FID": metrics.frechet_distance(real, measured.features)}
    functions = {"Precision": metrics.precision, "Recall": metrics.recall, "Coverage": metrics.coverage}
    for name, function in functions.items():
        if name in wanted:
            scores[name] = function(real, measured.features)
    if "Accuracy" in wanted and measured.correct is not None:
        scores["Accuracy"] = float(measured.correct.double().mean())
    return scores
