"""The teacher itself as a sampler of few steps."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.one_step.progressive import ddim_step
from benchmarks.one_step.setting import Sampler
from benchmarks.one_step.tasks import Task
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.schedules import karras_sigmas
from dmd_trainer.diffusion.solvers import heun

STEPS = {
    "digits": {"Euler": (1, 2, 4, 8, 18, 50), "Heun": (1, 2, 4, 8, 18, 50)},
    "glyphs": {"Euler": (1, 4, 18), "Heun": (4, 18, 40)},
}


def teacher_samplers(task: Task) -> dict[str, dict[int, Sampler]]:
    """By solver and network evaluations; Heun's last step is Euler's, so n steps are 2 n - 1 evaluations."""
    denoiser, steps = task.teacher.denoiser, STEPS[task.name]
    return {
        "Teacher, Euler": {count: euler(denoiser, count) for count in steps["Euler"]},
        "Teacher, Heun": {2 * n - 1: partial(heun, denoiser, denoiser.schedule, steps=n) for n in steps["Heun"]},
    }


def euler(denoiser: Denoiser, steps: int) -> Sampler:
    """Euler's method on the same sigmas as Heun's."""
    schedule = denoiser.schedule
    sigmas = karras_sigmas(steps, float(schedule.sigmas[0]), float(schedule.sigmas[-1]))
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])

    @torch.no_grad()
    def sample(noise: Tensor, condition: Condition) -> Tensor:
        x = noise * float(sigmas[0])
        for index in range(steps):
            sigma, following = (value.expand(len(x)) for value in sigmas[index : index + 2])
            x = ddim_step(denoiser, x, sigma, following, condition)
        return x

    return sample
