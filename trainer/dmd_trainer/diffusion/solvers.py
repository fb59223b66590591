"""Deterministic samplers: from noise to the teacher's image."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.default_solver import fitting_solvers
from dmd_trainer.diffusion.denoiser import Condition, Denoiser, Guided, X0Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule, karras_sigmas, per_sample
from dmd_trainer.diffusion.understood import FILE, TABLE, defaults, make_scheduler, value_of

Solver = Callable[[Tensor, Condition], Tensor]
"""(unit-variance noise [B, C, H, W], condition) -> the teacher's images or latents [B, C, H, W]."""


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

    def solve(predict: X0Prediction, noise: Tensor, condition: Condition) -> Tensor:
        if name == "Heun":
            return heun(predict, denoiser.schedule, noise, condition, steps)
        if name == "FlowMatchEuler":
            return flow_euler(denoiser, predict, noise, condition, steps)
        return solve_with_scheduler(
            denoiser, predict, _solver_scheduler(denoiser.schedule, name), noise, condition, steps
        )

    _rehearse(solve, denoiser.schedule, name, steps)
    return lambda noise, condition: solve(guided, noise, condition)


def _rehearse(solve: Callable[..., Tensor], schedule: Schedule, name: str, steps: int) -> None:
    """Takes all steps with a made-up prediction: a scheduler that cannot take them says so only when it does.

    Raises:
        BadInputError: it raises, asks for a noise level that the teacher does not have, or its result is not finite.
    """
    try:
        noise = torch.ones(1, 1, 8, 8, device=schedule.sigmas.device)
        reason = "" if solve(lambda x, *_: x / 2, noise, {}).isfinite().all() else "its result is not finite"
    except (ArithmeticError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason:
        raise BadInputError(
            f"spec.method.regression.solver: {steps} steps of {name} cannot be taken with the teacher's {FILE} "
            f"({reason}); name another solver or another number of steps, or correct the file"
        )


def _solver_scheduler(schedule: Schedule, name: str) -> Any:
    """One of diffusers' solvers, made of the teacher's scheduler configuration as a pipeline makes it.

    Raises:
        BadInputError: it would step through another noise schedule than the teacher's.
    """
    # Pairs are points of the probability-flow ODE: of a sampler that adds noise, the form that does not.
    algorithm = str(schedule.config.get("algorithm_type", ""))
    ode = {"algorithm_type": algorithm.removeprefix("sde-")} if algorithm.startswith("sde-") else {}
    scheduler = make_scheduler(schedule.config, f"{name}Scheduler", **ode)
    products = schedule.alphas.cpu() ** 2
    found = scheduler.alphas_cumprod.double()
    if len(found) != len(products) or not torch.allclose(found, products, rtol=0, atol=1e-6):
        known = defaults(f"{name}Scheduler")
        unknown = ", ".join(field for field in TABLE if value_of(schedule.config, field) and field not in known)
        raise BadInputError(
            f"spec.method.regression.solver: {name} does not step through the teacher's noise schedule"
            f"{f': it knows no {unknown}' if unknown else ''}; name another solver"
        )
    return scheduler


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
        schedule: its EDM schedule; the Karras sigmas run between its ends, with its rho (7 by default).
        noise: [B, C, H, W] with unit variance.
        condition: the teacher's condition, each [B, ...].
        steps: solver steps; network evaluations are 2 steps - 1.

    Returns:
        The solution x_0 [B, C, H, W].
    """
    rho = float(schedule.config.get("rho", 7.0))
    sigmas = karras_sigmas(steps, float(schedule.sigmas[0]), float(schedule.sigmas[-1]), rho).to(noise.device)
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
    scheduler: Any,
    noise: Tensor,
    condition: Condition,
    steps: int,
) -> Tensor:
    """One of diffusers' own deterministic solvers, over a variance-preserving teacher.

    Args:
        denoiser: the teacher's, whose scalings turn x0 predictions back into what the scheduler reads.
        guided: what predicts x0: `denoiser`, or its guided form.
        scheduler: diffusers', made from the teacher's scheduler configuration; left in its final state.
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
    # The ODE's sampler: one that adds noise makes no pairs.
    config = denoiser.schedule.config
    scheduler = make_scheduler(config, "FlowMatchEulerDiscreteScheduler", stochastic_sampling=False)
    scheduler.set_timesteps(steps, mu=_dynamic_shift(scheduler.config, denoiser, noise))
    x = noise
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        levels = sigma.to(denoiser.schedule.sigmas.device).expand(len(x))
        level = NoiseLevel(1 - levels, levels, time.to(levels).expand(len(x)))
        velocity = (x - guided(x, level, condition)) / per_sample(level.sigma, x)
        x = scheduler.step(velocity, time, x, return_dict=False)[0]
    return x


def _dynamic_shift(scheduler: Mapping[str, Any], denoiser: Denoiser, noise: Tensor) -> float | None:
    """What pipelines tell a scheduler whose shift depends on the image's size: linear in the number of patches."""
    if not scheduler["use_dynamic_shifting"]:
        return None
    network: Any = denoiser.network
    patches = noise.shape[-2] * noise.shape[-1] // network.config.patch_size**2
    low, high = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    slope = (scheduler["max_shift"] - scheduler["base_shift"]) / (high - low)
    return float(scheduler["base_shift"] + slope * (patches - low))
