"""Deterministic samplers: from noise to the teacher's image."""

from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.default_solver import fitting_solvers
from dmd_trainer.diffusion.denoiser import Condition, Denoiser, Guided, X0Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule, karras_sigmas, per_sample

Solver = Callable[[Tensor, Condition], Tensor]
"""(unit-variance noise [B, C, H, W], condition) -> the teacher's images or latents [B, C, H, W]."""

DIFFUSERS_SOLVERS = {"DDIM": DDIMScheduler, "PNDM": PNDMScheduler, "DPMSolverMultistep": DPMSolverMultistepScheduler}


def teacher_solver(
    denoiser: Denoiser, name: str, steps: int, guidance_scale: float = 1.0, negative: Condition | None = None
) -> Solver:
    """The sampler that makes a teacher's images, from the manifest's names.

    Args:
        denoiser: the teacher's.
        name: Heun for EDM teachers; FlowMatchEuler for flow matching; DDIM, PNDM or DPMSolverMultistep for
            variance-preserving ones.
        steps: solver steps.
        guidance_scale: classifier-free guidance; 1 turns it off.
        negative: the condition that guidance leads away from, [1, ...].

    Raises:
        BadInputError: the solver does not fit the teacher's schedule, or guidance has no condition to lead away from.
    """
    guided = guide(denoiser, guidance_scale, negative)
    fitting = fitting_solvers(denoiser.prediction)
    if name not in fitting:
        raise BadInputError(
            f"spec.method.regression.solver: {name} does not fit this teacher; use {' or '.join(fitting)}"
        )
    if name == "Heun":
        return lambda noise, condition: heun(guided, denoiser.schedule, noise, condition, steps)
    if name == "FlowMatchEuler":
        return lambda noise, condition: flow_euler(denoiser, guided, noise, condition, steps)
    scheduler_class = DIFFUSERS_SOLVERS[name]
    return lambda noise, condition: solve_with_scheduler(
        denoiser,
        guided,
        scheduler_class.from_config(dict(denoiser.schedule.config)),
        noise,
        condition,
        steps,
    )


def guide(denoiser: Denoiser, scale: float, negative: Condition | None) -> Guided:
    """A teacher under classifier-free guidance.

    Raises:
        BadInputError: the teacher has no condition that stands for "none".
    """
    if scale != 1 and negative is None:
        raise BadInputError(
            "spec.teacher.guidanceScale: this teacher has no condition for 'none' to be guided away from; leave it at 1"
        )
    return Guided(denoiser, scale, negative)


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
    for sigma, following in pairwise(sigmas):
        step = (following - sigma).to(x.dtype)
        first = slope(x, sigma)
        euler = x + step * first
        x = euler if following == 0 else x + step * (first + slope(euler, following)) / 2
    return x


@torch.no_grad()
def solve_with_scheduler(
    denoiser: Denoiser,
    guided: X0Prediction,
    scheduler: DDIMScheduler | PNDMScheduler | DPMSolverMultistepScheduler,
    noise: Tensor,
    condition: Condition,
    steps: int,
) -> Tensor:
    """One of diffusers' own deterministic solvers, over a variance-preserving teacher.

    Args:
        denoiser: the teacher's, whose scalings turn x0 predictions back into what the scheduler reads.
        guided: what predicts x0: `denoiser`, or its guided form.
        scheduler: made from the teacher's scheduler configuration; left in its final state.
        noise: [B, C, H, W] with unit variance.
        condition: the teacher's condition, each [B, ...].
        steps: solver steps.

    Returns:
        The solution x_0 [B, C, H, W].
    """
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps.tolist():
        level = denoiser.schedule.at(torch.full((len(x),), time, device=denoiser.schedule.sigmas.device))
        skip, out, _ = (per_sample(s, x) for s in denoiser.scalings(level))
        output = (guided(x, level, condition) - skip * x) / out
        x = scheduler.step(output, time, x, return_dict=False)[0]
    return x


@torch.no_grad()
def flow_euler(denoiser: Denoiser, guided: X0Prediction, noise: Tensor, condition: Condition, steps: int) -> Tensor:
    """Euler's solver of a flow-matching teacher's ODE, by diffusers' own scheduler (arXiv 2403.03206, section 2).

    Args:
        denoiser: the teacher's.
        guided: what predicts x0: `denoiser`, or its guided form.
        noise: [B, C, H, W] with unit variance.
        condition: the teacher's condition, each [B, ...].
        steps: solver steps.

    Returns:
        The solution x_0 [B, C, H, W].
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(denoiser.schedule.config))
    scheduler.set_timesteps(steps)
    x = noise
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        levels = sigma.to(denoiser.schedule.sigmas.device).expand(len(x))
        level = NoiseLevel(1 - levels, levels, time.to(levels).expand(len(x)))
        velocity = (x - guided(x, level, condition)) / per_sample(level.sigma, x)
        x = scheduler.step(velocity, time, x, return_dict=False)[0]
    return x
