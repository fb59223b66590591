"""A training step against the bare passes that it cannot avoid, on the same networks, taking turns."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.digits import digits_distillation

ROUNDS = 40
LIMIT = 1.10


def run() -> dict[str, Any]:
    """The ratio of the medians."""
    with tempfile.TemporaryDirectory() as folder:
        _, distillation = digits_distillation(Path(folder))
    batch, updates = distillation.local_batch, distillation.method.fake_score_updates
    teacher, shape = distillation.teacher, distillation.teacher.sample_shape
    x, both = torch.randn(batch, *shape), torch.randn(2 * batch, *shape)
    labels = torch.randint(0, 10, (batch,))
    level = teacher.denoiser.schedule.at(torch.full((batch,), 500))
    level_both = teacher.denoiser.schedule.at(torch.full((2 * batch,), 999))
    condition, condition_both = {"class_labels": labels}, {"class_labels": labels.repeat(2)}

    def bare_passes() -> None:
        distillation.generator.denoiser(both, level_both, condition_both).square().mean().backward()
        with torch.no_grad():
            teacher.denoiser(x, level, condition)
            distillation.mu_fake(x, level, condition)
        for update in range(updates):
            if update:
                with torch.no_grad():
                    distillation.generator.denoiser(x, level, condition)
            distillation.mu_fake(x, level, condition).square().mean().backward()

    def step() -> None:
        distillation.step()

    times: dict[str, list[float]] = {"step": [], "bare": []}
    for round_ in range(ROUNDS + 3):
        for name, action in (("step", step), ("bare", bare_passes)):
            seconds = _time(action)
            if round_ >= 3:
                times[name].append(seconds)
    step_ms, bare_ms = (1000 * statistics.median(times[name]) for name in ("step", "bare"))
    ratio = step_ms / bare_ms
    print(f"training step {step_ms:8.1f} ms   (batch {batch}, {updates} fake-score updates)")
    print(f"bare passes   {bare_ms:8.1f} ms")
    print(f"ratio         {ratio:8.3f}      at most {LIMIT}")
    return {"stepMilliseconds": step_ms, "bareMilliseconds": bare_ms, "ratio": ratio, "limit": LIMIT}


def _time(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
