"""The comparison on the emoji teacher, which is latent, reads text and is guided: one seed.

Each method starts from the teacher's weights, sees the same captions and glyphs, and trains for the same number of
network evaluations; a guided evaluation of the teacher is two. Finished runs are kept in `runs.jsonl`.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.one_step.emoji_methods import METHODS
from benchmarks.one_step.emoji_setting import BUDGET, CPU, Setting, ddim, emoji_setting, one_step
from benchmarks.one_step.runs import RUNS, Run
from benchmarks.one_step.setting import Sampler
from dmd_api.errors import TrainingDivergedError
from dmd_trainer.conditions.embeddings import PromptConditions
from dmd_trainer.data.emoji import load_emoji
from dmd_trainer.evaluation.clip_score import ClipScore
from dmd_trainer.evaluation.features import ClipFeatures
from dmd_trainer.evaluation.measure import Samples, measure, score
from dmd_trainer.runtime.fetch import ASSETS

KEYS = {"FID": "fid", "Precision": "precision", "Recall": "recall", "CLIPScore": "clipScore"}
TEACHER_STEPS = (1, 2, 4, 8, 18, 50)
PILOT_BUDGET, PILOT_RATES, PILOT_SEED = 60_000, (1e-4, 3e-4, 1e-3), 100


@torch.no_grad()
def measure_sampler(setting: Setting, sampler: Sampler, seed: int) -> dict[str, float]:
    """FID and the rest in emoji-clip's features, a picture for each caption; how often the nearest glyph is its own."""
    images, captions = load_emoji()
    extractor = ClipFeatures(ASSETS / "emoji-clip", "emoji-clip")
    real = torch.cat([extractor.extract(part)[0].float() for part in images.split(256)])
    samples = Samples(
        count=len(captions),
        seed=seed,
        batch_size=256,
        shape=setting.teacher.sample_shape,
        conditions=PromptConditions(embeddings=setting.conditions.embeddings, one_by_one=True),
        device=CPU,
        autoencoder=setting.teacher.autoencoder,
        clip=ClipScore(ASSETS / "emoji-clip", prefix=""),
    )
    measured = measure(sampler, extractor, samples)
    found = score(measured, real, {"CLIPScore", "Precision", "Recall"})
    similarity = F.normalize(measured.features, dim=1) @ F.normalize(real, dim=1).T
    right = similarity.argmax(1) == torch.arange(len(captions))
    return {KEYS[name]: value for name, value in found.items()} | {"retrieval": float(right.double().mean())}


def measured(setting: Setting, method: str, learning_rate: float | None, make: Callable[[], Sampler]) -> dict[str, Any]:
    """The figures of one method's generator, from the stored runs or else from training it."""

    def train_and_measure() -> dict[str, Any]:
        started = time.process_time()
        sampler = make()
        seconds = time.process_time() - started
        return {**measure_sampler(setting, sampler, setting.seed), "seconds": seconds}

    budget = 0 if learning_rate is None else setting.budget
    digest, samples = setting.teacher.digest[:12], len(setting.latents)
    return RUNS.get(Run("emoji", digest, method, {}, learning_rate, budget, setting.seed, samples), train_and_measure)


def distilled(setting: Setting, method: str, learning_rate: float) -> dict[str, Any]:
    """As `measured`, of one of the methods."""
    train, _ = METHODS[method]
    return measured(setting, method, learning_rate, partial(train, setting, learning_rate))


def run() -> dict[str, Any]:
    """Trains and measures what is not stored yet, and prints the table."""
    setting = emoji_setting()
    found: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, evaluations: int, figures: dict[str, Any]) -> None:
        row = {"evaluations": evaluations, **figures}
        found.setdefault(name, []).append(row)
        line = f"{name:30}{row['evaluations']:>4} {row['fid']:8.3f}  {row['precision']:9.3f}  {row['recall']:6.3f} "
        print(line + f" {row['clipScore']:10.2f}  {row['retrieval']:8.1%}", flush=True)

    print(f"{'':30} NFE      FID  precision  recall  CLIP score  retrieval")
    for name, (_, rate) in METHODS.items():
        add(name, 1, distilled(setting, name, rate))
    teacher = setting.teacher.denoiser
    add("Not distilled", 1, measured(setting, "Not distilled", None, lambda: one_step(teacher)))
    for steps in TEACHER_STEPS:
        name = f"Teacher, DDIM, {steps} steps"
        add("Teacher, DDIM", 2 * steps, measured(setting, name, None, partial(ddim, setting, steps)))
    rates = {name: rate for name, (_, rate) in METHODS.items()}
    return {"budget": BUDGET, "samples": len(setting.latents), "learningRates": rates, "methods": found}


def pilot(*methods: str, budget: int = PILOT_BUDGET, seed: int = PILOT_SEED) -> None:
    """Prints methods' FIDs with each learning rate; by default on a seed that the comparison does not use."""
    setting = emoji_setting(budget, seed)
    for method in methods or METHODS:
        for rate in PILOT_RATES:
            try:
                fid = distilled(setting, method, rate)["fid"]
            except TrainingDivergedError:
                fid = float("inf")
            print(f"{method:30} {rate:.0e} {fid:8.3f}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pilot", *names]:
            pilot(*names)
        case ["rates", *names]:
            pilot(*names, budget=BUDGET, seed=0)
        case _:
            run()
