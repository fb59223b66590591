"""Stock schedulers that call a generator at its own noise levels, and nowhere else."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.schedules import Schedule

REPLACED = ("num_train_timesteps", "trained_betas", "original_inference_steps", "timestep_scaling")


def one_step_ddim(schedule: Schedule, timestep: int) -> DDIMScheduler:
    """DDIM whose only step starts at `timestep` and ends at the image, unclipped: x_0 as the network predicts it."""
    return DDIMScheduler(
        num_train_timesteps=timestep + 1,
        trained_betas=_betas(schedule, timestep),
        prediction_type=schedule.config.get("prediction_type", "epsilon"),
        timestep_spacing="trailing",
        steps_offset=1,  # of no consequence to trailing steps, but pipelines of text warn of any other
        set_alpha_to_one=True,
        clip_sample=False,
    )


def one_step_flow(config: Mapping[str, Any], schedule: Schedule, timestep: int) -> FlowMatchEulerDiscreteScheduler:
    """Euler's sampler, whose one step starts at sigma = 1, whatever the shift.

    Raises:
        BadInputError: the generator is called elsewhere.
    """
    if timestep != len(schedule) - 1:
        raise BadInputError(
            "spec.method.generatorTimestep: flow-matching generators are called at the noisiest; leave it out"
        )
    return FlowMatchEulerDiscreteScheduler.from_config(config)


def several_step_lcm(config: Mapping[str, Any], schedule: Schedule, timesteps: Sequence[int]) -> LCMScheduler:
    """LCM's sampler, which adds fresh noise between the steps, with steps at `timesteps`.

    Args:
        config: of the teacher's own scheduler.
        schedule: the teacher's.
        timesteps: its indices, noisiest first.
    """
    config = {**config, "clip_sample": False, "set_alpha_to_one": True}
    taken = inspect.signature(LCMScheduler).parameters
    return LCMScheduler(
        **{k: v for k, v in config.items() if k in taken and k not in REPLACED},
        num_train_timesteps=timesteps[0] + 1,
        trained_betas=_betas(schedule, timesteps[0]),
        original_inference_steps=len(timesteps),
        # Consistency models blend the input in at small times; the generator's image is taken as it is.
        timestep_scaling=1e6,
    )


def _betas(schedule: Schedule, timestep: int) -> list[float]:
    """The betas of a schedule that ends at `timestep`."""
    products = (schedule.alphas[: timestep + 1] ** 2).cpu()
    betas: list[float] = (1 - products / torch.cat([products.new_ones(1), products[:-1]])).tolist()
    return betas
