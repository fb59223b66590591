"""One-step generators of one teacher by different methods, each with the same network and the same training budget.

This one is on the digits; `one_step.glyphs` is the same on the glyphs, which takes hours. Finished runs are kept in
`runs.jsonl` and not made again.
"""

import statistics
import time
from functools import partial
from typing import Any

import torch

from benchmarks.one_step.figure import plot
from benchmarks.one_step.methods import METHODS
from benchmarks.one_step.runs import RUNS, Run
from benchmarks.one_step.scores import measure
from benchmarks.one_step.setting import Sampler, Setting
from benchmarks.one_step.tasks import TASKS, Task
from benchmarks.one_step.teacher import teacher_samplers

BUDGETS = {"digits": 240_000, "glyphs": 300_000}
"""Network evaluations of each method's training: a minute or two on one core, and seven."""
SAMPLES = {"digits": 10_000, "glyphs": 50_000}
SEEDS = (0, 1, 2)


def run(name: str = "digits", seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Trains and measures everything that is not stored yet, prints the table and draws the plot."""
    torch.set_num_threads(1)
    task, budget, samples = TASKS[name](), BUDGETS[name], SAMPLES[name]
    rates = {method: of.learning_rate for method, of in METHODS[name].items()}
    scores: dict[str, dict[int, list[dict[str, float]]]] = {method: {1: []} for method in rates}
    for seed in seeds:
        for method, learning_rate in rates.items():
            scores[method][1].append(distilled(task, method, learning_rate, budget, seed, samples))
    for method, samplers in teacher_samplers(task).items():
        # There is nothing to train, and so one seed.
        scores[method] = {
            evaluations: [sampled(task, method, evaluations, sampler, seeds[0], samples)]
            for evaluations, sampler in samplers.items()
        }

    found = {method: [_row(evaluations, of) for evaluations, of in rows.items()] for method, rows in scores.items()}
    print(f"{'':40} NFE  FID              precision   recall accuracy")
    for method, rows in found.items():
        for row in rows:
            line = f"{method:40}{row['evaluations']:>4} {row['fid']:8.3f} ± {row['fidDeviation']:5.3f} "
            print(line + f"{row['precision']:9.3f} {row['recall']:8.3f} {row['accuracy']:8.2%}", flush=True)
    plot(found, name)
    return {"budget": budget, "samples": samples, "seeds": list(seeds), "learningRates": rates, "methods": found}


def distilled(task: Task, method: str, learning_rate: float, budget: int, seed: int, samples: int) -> dict[str, Any]:
    """The figures of one method's generator, from the stored runs or else from training it."""

    def make() -> dict[str, Any]:
        started = time.process_time()
        sampler = METHODS[task.name][method].distil(Setting(task, budget, seed), learning_rate)
        seconds = time.process_time() - started
        score = measure(task, sampler, seed, samples) | {"seconds": seconds}
        print(f"seed {seed}: {method:40} {learning_rate:.0e} FID {score['fid']:8.3f} {seconds:6.0f} s", flush=True)
        return score

    settings = METHODS[task.name][method].settings | {"batch": task.batch, "pair_steps": task.pair_steps}
    return RUNS.get(Run(task.name, teacher_of(task), method, settings, learning_rate, budget, seed, samples), make)


def sampled(task: Task, name: str, evaluations: int, sampler: Sampler, seed: int, samples: int) -> dict[str, Any]:
    """The figures of the teacher with one of its solvers, from the stored runs or else from sampling."""
    run = Run(task.name, teacher_of(task), name, {"evaluations": evaluations}, None, 0, seed, samples)
    return RUNS.get(run, partial(measure, task, sampler, seed, samples))


def teacher_of(task: Task) -> str:
    """The teacher's digest, short: another teacher's runs are other runs."""
    return task.teacher.digest[:12]


def _row(evaluations: int, scores: list[dict[str, float]]) -> dict[str, Any]:
    """The means over seeds, each seed's FID and their standard deviation."""
    fids = [score["fid"] for score in scores]
    means = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
    deviation = statistics.stdev(fids) if len(fids) > 1 else 0.0
    return {"evaluations": evaluations, "fids": fids, "fidDeviation": deviation} | means
