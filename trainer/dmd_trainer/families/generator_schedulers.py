"""Stock schedulers that call a generator at its own noise levels, and nowhere else."""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.schedules import Schedule


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


def one_step_flow(schedule: Schedule, timestep: int) -> FlowMatchEulerDiscreteScheduler:
    """Euler's sampler, whose one step starts at sigma = 1, the noisiest level under any shift.

    Raises:
        BadInputError: the generator is called elsewhere.
    """
    if timestep != len(schedule) - 1:
        raise BadInputError(
            "spec.method.generatorTimestep: flow-matching generators are called at the noisiest; leave it out"
        )
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(schedule))


def several_step_lcm(schedule: Schedule, timesteps: Sequence[int]) -> LCMScheduler:
    """LCM's sampler, which adds fresh noise between the steps, with steps at `timesteps`, noisiest first.

    Raises:
        BadInputError: it cannot be brought to take them.
    """
    steps = len(timesteps)
    scheduler = LCMScheduler(
        num_train_timesteps=timesteps[0] + 1,
        trained_betas=_betas(schedule, timesteps[0]),
        prediction_type=schedule.config.get("prediction_type", "epsilon"),
        original_inference_steps=steps,
        steps_offset=1,  # of no consequence, as above
        set_alpha_to_one=True,
        # Consistency models blend the input in at small times; the generator's image is taken as it is.
        timestep_scaling=1e6,
    )
    scheduler.set_timesteps(steps)
    if scheduler.timesteps.tolist() != list(timesteps):
        raise BadInputError(
            f"spec.method.generatorSteps: {steps} steps do not divide the {timesteps[0] + 1} levels below "
            "generatorTimestep evenly, and diffusers' sampler takes no others; choose a divisor"
        )
    return scheduler


def _betas(schedule: Schedule, timestep: int) -> list[float]:
    """The betas of a schedule that ends at `timestep`."""
    products = (schedule.alphas[: timestep + 1] ** 2).cpu()
    betas: list[float] = (1 - products / torch.cat([products.new_ones(1), products[:-1]])).tolist()
    return betas
