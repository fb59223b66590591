"""How good a sampler's images are, in the features of the task's classifier."""

import torch

from benchmarks.one_step.setting import Sampler
from benchmarks.one_step.tasks import Task
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.evaluation.metrics import frechet_distance, precision, recall

SAMPLES, BATCH = 10_000, 250


@torch.inference_mode()
def measure(task: Task, sampler: Sampler, seed: int, samples: int = SAMPLES) -> dict[str, float]:
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
    # Manifolds of as many samples on either side: distances of all to all grow with the square.
    some = real[:samples]
    return {
        "fid": frechet_distance(real, generated),
        "precision": precision(some, generated),
        "recall": recall(some, generated),
        "accuracy": float(torch.cat(correct).double().mean()),
    }
