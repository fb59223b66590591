"""How good a sampler's images are, in the digit classifier's features."""

from functools import cache

import torch

from benchmarks.one_step.setting import CLASSES, Sampler, digits_teacher
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.evaluation.features import ClassifierFeatures
from dmd_trainer.evaluation.metrics import frechet_distance, precision, recall

SAMPLES, BATCH = 10_000, 250


@torch.inference_mode()
def measure(sampler: Sampler, seed: int, samples: int = SAMPLES) -> dict[str, float]:
    """FID, precision, recall, and how often the classifier finds the class that was asked for."""
    teacher, images, _ = digits_teacher()
    extractor = _extractor()
    real = extractor.extract(images)[0]
    features, correct = [], []
    for start in range(0, samples, BATCH):
        random = KeyedRandom(seed, "evaluation", 0, range(start, min(start + BATCH, samples)))
        labels, noise = random.integers(0, CLASSES), random.normal(teacher.sample_shape)
        found, predicted = extractor.extract(sampler(noise, {"class_labels": labels}).clamp(-1, 1))
        features.append(found)
        correct.append(predicted == labels)
    generated = torch.cat(features)
    return {
        "fid": frechet_distance(real, generated),
        "precision": precision(real, generated),
        "recall": recall(real, generated),
        "accuracy": float(torch.cat(correct).double().mean()),
    }


@cache
def _extractor() -> ClassifierFeatures:
    return ClassifierFeatures("digits-classifier")
