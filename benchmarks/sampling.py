"""Sampler against sampler: the one-step generator and its teacher at batch 64."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dmd_trainer.fetch import local_path
from dmd_trainer.generator import Generator
from dmd_trainer.solvers import teacher_solver
from dmd_trainer.teachers import load_teacher

BATCH, STEPS, ROUNDS = 64, 18, 9
EVALUATIONS = 2 * STEPS - 1
LIMIT = 0.9 * EVALUATIONS


@torch.inference_mode()
def run() -> dict[str, Any]:
    """How many times faster the generator is; its weights do not matter, the teacher's own serve."""
    torch.set_num_threads(1)
    teacher = load_teacher(local_path("builtin://digits-teacher", Path()))
    noise = torch.randn(BATCH, *teacher.sample_shape)
    condition = {"class_labels": torch.randint(0, 10, (BATCH,))}
    generator = Generator(teacher.denoiser, (len(teacher.denoiser.schedule) - 1,))
    samplers = {"teacher": teacher_solver(teacher, "Heun", STEPS), "generator": generator}
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for round_ in range(ROUNDS + 1):
        for name, sampler in samplers.items():
            repeats = 1 if name == "teacher" else EVALUATIONS  # as long as the teacher, for as steady a clock
            started = time.perf_counter()
            for _ in range(repeats):
                sampler(noise, condition)
            if round_:
                times[name].append((time.perf_counter() - started) / repeats)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    speedup = seconds["teacher"] / seconds["generator"]
    print(f"teacher    {1000 * seconds['teacher'] / BATCH:8.3f} ms an image, {EVALUATIONS} network evaluations")
    print(f"generator  {1000 * seconds['generator'] / BATCH:8.3f} ms an image, 1 network evaluation")
    print(f"speed-up   {speedup:8.1f}       at least {LIMIT:.1f} (0.9 x {EVALUATIONS})")
    return {"secondsPerImage": {k: v / BATCH for k, v in seconds.items()}, "speedup": speedup, "limit": LIMIT}
