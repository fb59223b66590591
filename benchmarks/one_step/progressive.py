"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2): a student's step is two teacher's.

DDIM's step in x_t = x_0 + sigma eps is Euler's: x' = x_0 + (sigma' / sigma) (x - x_0), with x_0 = D(x, sigma).
"""

import torch
from torch import Tensor

from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler, Setting, normal_like, one_step
from benchmarks.one_step.training import train
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.schedules import karras_sigmas, per_sample

PHASES = ((16, 1), (8, 1), (4, 1), (2, 2), (1, 2))
"""The student's steps, and each phase's part of the budget: twice as much for the last two (appendix A)."""
COST = UPDATE + 2 * FORWARD
"""The student's update and the teacher's two steps."""


def ddim_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, following: Tensor, condition: Condition) -> Tensor:
    """From x at sigma [B] to `following` [B]: [B, C, H, W]."""
    x0 = denoiser(x, denoiser.schedule.at_sigma(sigma), condition)
    return x0 + per_sample(following / sigma, x) * (x - x0)


@torch.no_grad()
def two_steps_target(
    teacher: Denoiser, x: Tensor, sigma: Tensor, middle: Tensor, following: Tensor, condition: Condition
) -> Tensor:
    """The x_0 with which one step from sigma to `following` arrives where the teacher's two do (appendix G)."""
    halfway = ddim_step(teacher, x, sigma, middle, condition)
    arrived = ddim_step(teacher, halfway, middle, following, condition)
    ratio = per_sample(following / sigma, x)
    return (arrived - ratio * x) / (1 - ratio)


def halvable_sigmas(steps: int, low: float, high: float) -> Tensor:
    """`steps` + 1 Karras sigmas, the last one 0; those of half as many steps are every second one of them."""
    sigmas = karras_sigmas(steps + 1, low, high)
    sigmas[-1] = 0
    return sigmas


def progressive(setting: Setting, learning_rate: float) -> Sampler:
    """A one-step generator by halving the steps again and again; each phase's average is the next one's teacher."""
    teacher, draws = setting.teacher.denoiser, setting.draws(3)
    low, high = float(teacher.schedule.sigmas[0]), float(teacher.schedule.sigmas[-1])
    parts = sum(part for _, part in PHASES)
    for steps, part in PHASES:
        sigmas = halvable_sigmas(2 * steps, low, high)

        def loss(student: Denoiser, teacher: Denoiser = teacher, sigmas: Tensor = sigmas, steps: int = steps) -> Tensor:
            images, condition = setting.real(draws)
            index = 2 * torch.randint(steps, (setting.batch,), generator=draws)
            sigma = sigmas[index]
            x = images + per_sample(sigma, images) * normal_like(images, draws)
            target = two_steps_target(teacher, x, sigma, sigmas[index + 1], sigmas[index + 2], condition)
            level = student.schedule.at_sigma(sigma)
            # EDM's weight 1 / c_out^2 = 1 / sigma^2 + 1 / sigma_data^2: the paper's SNR + 1 (section 4).
            error = (student(x, level, condition) - target) / per_sample(student.scalings(level).out, x)
            return error.square().mean()

        teacher = train(teacher, loss, setting.updates(COST) * part // parts, learning_rate)
    return one_step(teacher)
