"""Deterministic samplers: from noise to the teacher's image."""

from collections.abc import Callable

import torch
from torch import Tensor

from dmd_trainer.denoiser import Condition
from dmd_trainer.schedules import NoiseLevel, Schedule, karras_sigmas, per_sample

X0Prediction = Callable[[Tensor, NoiseLevel, Condition], Tensor]
"""A `Denoiser`, or a `Guided` one."""


@torch.no_grad()
def heun(denoiser: X0Prediction, schedule: Schedule, noise: Tensor, condition: Condition, steps: int = 18) -> Tensor:
    """Heun's second-order solver of the probability-flow ODE (EDM, arXiv 2206.00364, algorithm 1, s = 1, sigma = t).

    Args:
        denoiser: the teacher, guided or not.
        schedule: its EDM schedule; the Karras sigmas run between its ends (rho = 7).
        noise: [B, C, H, W] with unit variance.
        condition: the teacher's condition, each [B, ...].
        steps: solver steps; network evaluations are 2 steps - 1.

    Returns:
        The solution x_0 [B, C, H, W].
    """
    sigmas = karras_sigmas(steps, float(schedule.sigmas[0]), float(schedule.sigmas[-1])).to(noise.device)
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        level = schedule.at_sigma(sigma.expand(len(x)))
        return (x - denoiser(x, level, condition)) / per_sample(level.sigma, x)

    x = noise * sigmas[0].to(noise.dtype)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        step = (following - sigma).to(x.dtype)
        first = slope(x, sigma)
        euler = x + step * first
        x = euler if following == 0 else x + step * (first + slope(euler, following)) / 2
    return x
