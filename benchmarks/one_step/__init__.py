"""One-step generators of one teacher by different methods, each with the same network and the same training budget."""

import statistics
import time
from typing import Any

import torch

from benchmarks.one_step.figure import plot
from benchmarks.one_step.methods import METHODS
from benchmarks.one_step.scores import SAMPLES, measure
from benchmarks.one_step.setting import Setting, digits_teacher
from benchmarks.one_step.teacher import teacher_samplers

BUDGET = 240_000
"""Network evaluations of each method's training; a minute or two on one core."""
SEEDS = (0, 1, 2)


def run(budget: int = BUDGET, seeds: tuple[int, ...] = SEEDS, samples: int = SAMPLES) -> dict[str, Any]:
    """Trains and measures everything, prints the table and draws the plot."""
    torch.set_num_threads(1)
    teacher, images, labels = digits_teacher()
    scores: dict[str, dict[int, list[dict[str, float]]]] = {name: {1: []} for name in METHODS}
    for seed in seeds:
        for name, (method, learning_rate) in METHODS.items():
            started = time.process_time()
            sampler = method(Setting(teacher, images, labels, budget, seed), learning_rate)
            seconds = time.process_time() - started
            score = measure(sampler, seed, samples) | {"seconds": seconds}
            print(f"seed {seed}: {name:40} FID {score['fid']:8.3f} {seconds:6.0f} s", flush=True)
            scores[name][1].append(score)
    for name, samplers in teacher_samplers(teacher.denoiser).items():
        # There is nothing to train, and so one seed.
        scores[name] = {evaluations: [measure(s, seeds[0], samples)] for evaluations, s in samplers.items()}

    found = {name: [_row(evaluations, of) for evaluations, of in rows.items()] for name, rows in scores.items()}
    print(f"{'':40} NFE  FID              precision   recall accuracy")
    for name, rows in found.items():
        for row in rows:
            line = f"{name:40}{row['evaluations']:>4} {row['fid']:8.3f} ± {row['fidDeviation']:5.3f} "
            print(line + f"{row['precision']:9.3f} {row['recall']:8.3f} {row['accuracy']:8.2%}", flush=True)
    plot(found)
    rates = {name: learning_rate for name, (_, learning_rate) in METHODS.items()}
    return {"budget": budget, "samples": samples, "seeds": list(seeds), "learningRates": rates, "methods": found}


def _row(evaluations: int, scores: list[dict[str, float]]) -> dict[str, Any]:
    """The means over seeds, each seed's FID and their standard deviation."""
    fids = [score["fid"] for score in scores]
    means = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
    deviation = statistics.stdev(fids) if len(fids) > 1 else 0.0
    return {"evaluations": evaluations, "fids": fids, "fidDeviation": deviation} | means
