"""Consistency distillation (Song et al. 2023, arXiv 2303.01469, algorithm 2), with L2 as the metric and lambda = 1."""

import copy

import torch
from torch import Tensor

from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler, Setting, normal_like
from benchmarks.one_step.training import follow, train
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.schedules import karras_sigmas, per_sample

STEPS = 18
"""N: noise levels between which the ODE is solved, as published for CIFAR-10 (appendix C, table 3)."""
TARGET_DECAY = 0.95
"""mu of the target network's moving average, as published for 64x64 images (table 3)."""
COST = UPDATE + 3 * FORWARD
"""The student's update, the two evaluations of Heun's step, and the target network's."""


def consistency_function(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """f(x, sigma) = c_skip x + c_out F, which is x itself at the smallest sigma (eq. 5, appendix C).

    c_skip = s^2 / ((sigma - sigma_min)^2 + s^2), c_out = s (sigma - sigma_min) / sqrt(s^2 + sigma^2), s = sigma_data.

    Args:
        denoiser: whose network F is.
        x: [B, C, H, W].
        sigma: [B].
        condition: each [B, ...].
    """
    schedule = denoiser.schedule
    assert schedule.sigma_data is not None, "consistency distillation needs an EDM teacher"
    level = schedule.at_sigma(sigma)
    scalings = denoiser.scalings(level)
    above = level.sigma - schedule.sigmas[0]
    skip = schedule.sigma_data**2 / (above**2 + schedule.sigma_data**2)
    # The network's own output, from D = skip x + out F; EDM's c_out with sigma - sigma_min in sigma's place.
    network = (denoiser(x, level, condition) - per_sample(scalings.skip, x) * x) / per_sample(scalings.out, x)
    return per_sample(skip, x) * x + per_sample(scalings.out * above / level.sigma, x) * network


@torch.no_grad()
def heun_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, following: Tensor, condition: Condition) -> Tensor:
    """One step of the teacher's ODE dx/dsigma = (x - D(x, sigma)) / sigma (arXiv 2206.00364, algorithm 1)."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoiser(x, denoiser.schedule.at_sigma(sigma), condition)) / per_sample(sigma, x)

    step = per_sample(following - sigma, x)
    first = slope(x, sigma)
    return x + step * (first + slope(x + step * first, following)) / 2


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    x: Tensor,
    sigma: Tensor,
    following: Tensor,
    condition: Condition,
) -> Tensor:
    """mean (f(x, sigma) - f_target(x', sigma'))^2, x' one teacher's step from x towards sigma' (eq. 7): a scalar."""
    with torch.no_grad():
        stepped = heun_step(teacher, x, sigma, following, condition)
        goal = consistency_function(target, stepped, following, condition)
    return (consistency_function(student, x, sigma, condition) - goal).square().mean()


def consistency(setting: Setting, learning_rate: float) -> Sampler:
    """A one-step generator by consistency distillation from noised data."""
    teacher, draws = setting.teacher.denoiser, setting.draws(2)
    target = teacher.with_network(copy.deepcopy(teacher.network))
    low, high = float(teacher.schedule.sigmas[0]), float(teacher.schedule.sigmas[-1])
    sigmas = karras_sigmas(STEPS, low, high)

    def loss(student: Denoiser) -> Tensor:
        follow(target.network, student.network, TARGET_DECAY)
        images, condition = setting.real(draws)
        index = torch.randint(STEPS - 1, (setting.batch,), generator=draws)
        sigma, following = sigmas[index], sigmas[index + 1]
        x = images + per_sample(sigma, images) * normal_like(images, draws)
        return consistency_loss(student, target, teacher, x, sigma, following, condition)

    average = train(teacher, loss, setting.updates(COST), learning_rate)

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        return consistency_function(average, noise * high, sigmas[:1].expand(len(noise)), condition)

    return sample
