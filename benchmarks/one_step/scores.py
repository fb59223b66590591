"""How good a sampler's images are, in the features of the task's classifier."""

import torch

from benchmarks.one_step.setting import Sampler
from benchmarks.one_step.tasks import Task
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.evaluation.metrics import frechet_distance, precision, recall

BATCH = 100
"""The glyphs' network is about a tenth faster than in batches of 250."""
MANIFOLD = 10_000
"""Of so many images on either side at most: distances of all to all grow with the square."""


@torch.inference_mode()
def measure(task: Task, sampler: Sampler, seed: int, samples: int) -> dict[str, float]:
    """FID, precision, recall, and how often the classifier finds the class that was asked for."""
    extractor, real = task.features()
    features, correct = [], []
    for start in range(0, samples, BATCH):
        random = KeyedRandom(seed, "evaluation", 0, range(start, min(start + BATCH, samples)))
        labels, noise = random.integers(0, task.classes), random.normal(task.teacher.sample_shape)
        found, predicted = extractor.extract(sampler(noise, {"class_labels": labels}).clamp(-1, 1))
        features.append(found)
        correct.append(predicted == labels)
    generated = torch.cat(features)
    as_many = min(samples, MANIFOLD)
    some, of_them = real[:as_many], generated[:as_many]
    return {
        "fid": frechet_distance(real, generated),
        "precision": precision(some, of_them),
        "recall": recall(some, of_them),
        "accuracy": float(torch.cat(correct).double().mean()),
    }
