"""Rectified flow (Liu et al. 2022, arXiv 2209.03003): 2-reflow, then one Euler step.

The flow's x_s = (1 - s) x_1 + s z, with z the noise and x_1 the teacher's image of it, is (1 - s) times EDM's
x_1 + sigma z at sigma = s / (1 - s). So the teacher's network carries the flow: x_1 = D(x_s / (1 - s), sigma).
"""

import torch
from torch import Tensor

from benchmarks.one_step.setting import UPDATE, Sampler, Setting, one_step
from benchmarks.one_step.training import train
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.schedules import per_sample


def velocity(denoiser: Denoiser, x_s: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """v = dx_s / d(1 - s) = x_1 - z = (x_1 - x_s) / s, from noise to image: [B, C, H, W].

    Args:
        denoiser: predicts x_1.
        x_s: [B, C, H, W].
        s: the noise's share [B], between 0 and 1.
        condition: each [B, ...].
    """
    x1 = denoiser(x_s / per_sample(1 - s, x_s), denoiser.schedule.at_sigma(s / (1 - s)), condition)
    return (x1 - x_s) / per_sample(s, x_s)


def reflow_loss(student: Denoiser, noise: Tensor, images: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """mean |(x_1 - z) - v(x_s, s)|^2 over the straight lines between pairs (eq. 1): a scalar."""
    share = per_sample(s, images)
    x_s = (1 - share) * images + share * noise
    return (images - noise - velocity(student, x_s, s, condition)).square().mean()


def reflow(setting: Setting, learning_rate: float, share: float = 0.5) -> Sampler:
    """A one-step generator by straightening the paths of ODE pairs, which take `share` of the budget."""
    pairs, draws = setting.pairs(share), setting.draws(4)
    sigmas = setting.teacher.denoiser.schedule.sigmas
    low, high = (float(sigma / (1 + sigma)) for sigma in (sigmas[0], sigmas[-1]))

    def loss(student: Denoiser) -> Tensor:
        noise, images, condition = pairs.draw(setting.batch, draws)
        s = torch.rand(setting.batch, generator=draws, dtype=torch.float64).clamp(low, high)
        return reflow_loss(student, noise, images, s, condition)

    updates = setting.updates(UPDATE, spent=pairs.cost)
    return one_step(train(setting.teacher.denoiser, loss, updates, learning_rate))
