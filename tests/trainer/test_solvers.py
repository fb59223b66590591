"""Solvers against closed forms and an independent integrator."""

from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.schedules import NoiseLevel, karras_sigmas, per_sample, schedule_from_scheduler
from dmd_trainer.diffusion.solvers import guide, heun, teacher_solver
from dmd_trainer.families.teacher import load_teacher

EDM = schedule_from_scheduler({"_class_name": "EDMEulerScheduler"})
MEAN, SPREAD = 0.3, 0.8


def gaussian(x_t: Tensor, level: NoiseLevel, condition: object) -> Tensor:
    """The exact denoiser of N(MEAN, SPREAD^2)."""
    variance = per_sample(level.sigma, x_t) ** 2
    return MEAN + SPREAD**2 / (SPREAD**2 + variance) * (x_t - MEAN)


def test_heun_solves_the_gaussian_ode_with_second_order() -> None:
    """dx/dsigma = sigma (x - m) / (s^2 + sigma^2) has x(0) - m = (x(T) - m) s / sqrt(s^2 + T^2)."""
    noise = torch.randn(16, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = MEAN + (80 * noise - MEAN) * SPREAD / (SPREAD**2 + 80**2) ** 0.5
    errors = [float((heun(gaussian, EDM, noise, {}, steps) - exact).abs().max()) for steps in (32, 64)]
    assert errors[1] < 0.01
    assert errors[0] / errors[1] > 3  # halving the step divides a second-order error by about four


def test_heun_agrees_with_an_independent_implementation() -> None:
    noise = np.random.default_rng(0).standard_normal((4, 1, 3, 3))
    sigmas = [*karras_sigmas(10).tolist(), 0.0]
    x = noise * sigmas[0]
    for now, then in pairwise(sigmas):

        def derivative(x: np.ndarray, s: float) -> np.ndarray:
            return (x - (MEAN + SPREAD**2 / (SPREAD**2 + s**2) * (x - MEAN))) / s

        d = derivative(x, now)
        moved = x + (then - now) * d
        x = moved if then == 0 else x + (then - now) * 0.5 * (d + derivative(moved, then))
    found = heun(gaussian, EDM, torch.from_numpy(noise), {}, 10)
    np.testing.assert_allclose(found.numpy(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "DPMSolverMultistep"])
def test_diffusers_solvers_sample_as_a_pipeline_would(name: str, tiny_ddpm: Path) -> None:
    teacher = load_teacher(tiny_ddpm)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = getattr(diffusers, f"{name}Scheduler").from_pretrained(tiny_ddpm, subfolder="scheduler")
    scheduler.set_timesteps(6)
    x = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(teacher.denoiser.network(x, time).sample, time, x).prev_sample
    torch.testing.assert_close(teacher_solver(teacher.denoiser, name, 6)(noise, {}), x, rtol=1e-3, atol=1e-3)


def test_a_solver_that_does_not_fit_the_teacher_is_refused(tiny_teacher: Path, tiny_ddpm: Path) -> None:
    with pytest.raises(BadInputError, match="use Heun"):
        teacher_solver(load_teacher(tiny_teacher).denoiser, "DDIM", 4)
    with pytest.raises(BadInputError, match="use DDIM"):
        teacher_solver(load_teacher(tiny_ddpm).denoiser, "Heun", 4)


def test_an_unconditional_teacher_cannot_be_guided(tiny_ddpm: Path) -> None:
    with pytest.raises(BadInputError, match="guidanceScale"):
        guide(load_teacher(tiny_ddpm).denoiser, 2.0, None)
