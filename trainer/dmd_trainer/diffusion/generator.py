"""The generator: the teacher's network, called at one noise level, or at a few (DMD2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_api.spec import Method
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.randomness import further_noise
from dmd_trainer.diffusion.schedules import Schedule, add_noise


def generator_timesteps(method: Method, schedule: Schedule) -> tuple[int, ...]:
    """The indices of the schedule that the generator is called at, noisiest first.

    Several are spread evenly below the first: 999, 749, 499, 249 (DMD2, arXiv 2405.14867, section 4.4).
    """
    first = len(schedule) - 1 if method.generator_timestep is None else method.generator_timestep
    steps = method.generator_steps
    return tuple((first + 1) * (steps - step) // steps - 1 for step in range(steps))


@dataclass(frozen=True)
class Generator:
    """x = G(z): the x0 prediction of pure noise (DMD, arXiv 2311.18828, section 4.1), or of its noised images.

    Attributes:
        denoiser: the trainable copy of the teacher behind the teacher's preconditioning.
        timesteps: the indices of the noise levels in the teacher's schedule, noisiest first.
        fresh_noise: the noise that is added before a step, from the first noise and the step's name.
    """

    denoiser: Denoiser
    timesteps: tuple[int, ...]
    fresh_noise: Callable[[Tensor, str], Tensor] = further_noise

    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        """Images or latents [B, C, H, W] from unit-variance noise [B, C, H, W], by all steps."""
        return self.step(self.input(noise, condition, len(self.timesteps) - 1), condition, len(self.timesteps) - 1)

    def input(self, noise: Tensor, condition: Condition, step: int) -> Tensor:
        """What the generator sees at step number `step`: noise, or its image of the step before noised again.

        So it sees in training what it sees in sampling (backward simulation, arXiv 2405.14867, section 4.5).
        """
        schedule = self.denoiser.schedule
        # Samplers start variance-preserving and flow models at unit variance, EDM's at sigma.
        scale = float(schedule.sigmas[self.timesteps[0]]) if schedule.sigma_data is not None else 1.0
        x_t = noise * scale
        for number in range(step):
            level = schedule.at(self._index(noise, number + 1))
            x_t = add_noise(self.step(x_t, condition, number), self.fresh_noise(noise, f"step {number + 1}"), level)
        return x_t

    def step(self, x_t: Tensor, condition: Condition, step: int) -> Tensor:
        """One call of the network: the image [B, C, H, W] that step number `step` makes of `x_t` [B, C, H, W]."""
        return self.denoiser(x_t, self.denoiser.schedule.at(self._index(x_t, step)), condition)

    def _index(self, x: Tensor, step: int) -> Tensor:
        return torch.full((len(x),), self.timesteps[step], device=self.denoiser.schedule.sigmas.device)
