"""Measures a sampler: features of its images, then metrics against real ones, together with all ranks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.conditions.embeddings import PromptConditions
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.distributed.collectives import gather, rank_and_world_size
from dmd_trainer.evaluation import metrics
from dmd_trainer.evaluation.clip_score import ClipScore
from dmd_trainer.evaluation.features import FeatureExtractor
from dmd_trainer.evaluation.reference import square_images
from dmd_trainer.families.autoencoder import Pixels

Sampler = Callable[[Tensor, Condition], Tensor]
"""(unit-variance noise [B, C, H, W], condition) -> images or latents [B, C, H, W]: a generator, or a solver."""


@dataclass(frozen=True)
class Measured:
    """Measurements of a set of generated images.

    Attributes:
        features: [N, D], float32, on the CPU.
        correct: [N], bool: whether the feature network finds the class that was asked for; None without classes.
        clip_scores: [N], how well each image fits its prompt; None without CLIP.
    """

    features: Tensor
    correct: Tensor | None = None
    clip_scores: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """The images that are generated to be measured: keyed, so that any number of ranks measures the same ones.

    Attributes:
        count: how many.
        seed: the run's.
        batch_size: how many at once.
        shape: (C, H, W).
        conditions: what conditions are drawn from.
        device: where they are generated.
        autoencoder: makes images of what is sampled.
        resolution: what images are brought to before they are looked at; None leaves them.
        clip: scores how images fit their prompts; None leaves that out.
    """

    count: int
    seed: int
    batch_size: int
    shape: tuple[int, int, int]
    conditions: Conditions
    device: torch.device
    autoencoder: Pixels = field(default_factory=Pixels)
    resolution: int | None = None
    clip: ClipScore | None = None


# Not inference mode: a sharded network cannot be gathered in it.
@torch.no_grad()
def measure(
    sampler: Sampler,
    extractor: FeatureExtractor,
    samples: Samples,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Generates and extracts, each rank its batches; the same complete result on every rank, in global order.

    Args:
        sampler: the generator or solver.
        extractor: the feature network.
        samples: the images.
        on_batch: called after each batch with the number of images that all ranks made; may raise to stop.
    """
    rank, world_size = rank_and_world_size()
    starts = range(0, samples.count, samples.batch_size)
    mine = starts[rank::world_size]
    found: list[Measured] = []
    # Every rank samples as often as the others: a sharded network is gathered by all of them together.
    for turn in range(-(-len(starts) // world_size)):
        start = mine[turn] if turn < len(mine) else starts[0]
        indices = range(start, min(start + samples.batch_size, samples.count))
        found.append(_measure_batch(sampler, extractor, samples, indices))
        on_batch(len(indices) * world_size)

    def joined(parts: list[Tensor | None]) -> Tensor | None:
        known = [part for part in parts if part is not None]
        return _in_order(known, samples) if known else None

    features = joined([batch.features for batch in found])
    assert features is not None
    return Measured(features, joined([b.correct for b in found]), joined([b.clip_scores for b in found]))


def _in_order(batches: list[Tensor], samples: Samples) -> Tensor:
    """All ranks' rows [N, ...] in global order, of this rank's batches; batch i was rank i mod N's.

    A rank without a batch in the last turn has measured one all the same, which comes after the others' and is cut off.
    """
    # Collectives want one shape: only the last of all batches may be shorter.
    rows = batches[0].new_zeros(len(batches), samples.batch_size, *batches[0].shape[1:])
    for turn, batch in enumerate(batches):
        rows[turn, : len(batch)] = batch
    return torch.stack(gather(rows), dim=1).flatten(0, 2)[: samples.count]  # of [turns, ranks, batch size, ...]


def _measure_batch(sampler: Sampler, extractor: FeatureExtractor, samples: Samples, indices: range) -> Measured:
    random = KeyedRandom(samples.seed, "evaluation", 0, indices)
    drawn = samples.conditions.draw(random)
    condition = samples.conditions.embed(drawn, samples.device)
    sampled = sampler(random.normal(samples.shape).to(samples.device), condition)
    # What is measured is what a pipeline shows: images clipped to [-1, 1].
    images = samples.autoencoder.decode(sampled).clamp(-1, 1)
    correct = scores = None
    if samples.clip is not None and isinstance(samples.conditions, PromptConditions):
        prompts = [samples.conditions.prompts[i] for i in drawn["prompt"].tolist()]
        scores = samples.clip.score(images, prompts)
    if samples.resolution is not None:
        images = square_images(images, samples.resolution)
    features, predicted = extractor.extract(images)
    if predicted is not None and "class_labels" in condition:
        correct = (predicted == condition["class_labels"]).cpu()
    return Measured(features.float().cpu(), correct, scores)


def score(measured: Measured, real: Tensor, wanted: Collection[str]) -> dict[str, float]:
    """The metrics of the manifest's names, FID always among them, against real features [N, D]."""
    scores = {"FID": metrics.frechet_distance(real, measured.features)}
    functions = {"Precision": metrics.precision, "Recall": metrics.recall, "Coverage": metrics.coverage}
    for name, function in functions.items():
        if name in wanted:
            scores[name] = function(real, measured.features)
    if "Accuracy" in wanted and measured.correct is not None:
        scores["Accuracy"] = float(measured.correct.double().mean())
    if "CLIPScore" in wanted and measured.clip_scores is not None:
        scores["CLIPScore"] = float(measured.clip_scores.double().mean())
    return scores
