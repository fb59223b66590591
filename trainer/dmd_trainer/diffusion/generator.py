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
        last = torch.full((len(noise),), len(self.timesteps) - 1)
        return self.step(self.input(noise, condition, last), condition, last)

    def input(self, noise: Tensor, condition: Condition, step: Tensor) -> Tensor:
        """What the generator sees at each sample's step number: noise, or its image of the step before noised again.

        So it sees in training what it sees in sampling (backward simulation, arXiv 2405.14867, section 4.5).

        Args:
            noise: [B, C, H, W], unit variance.
            condition: each [B, ...].
            step: int64 [B], on the CPU: the number of network calls depends on it.
        """
        schedule = self.denoiser.schedule
        # Samplers start variance-preserving and flow models at unit variance, EDM's at sigma.
        scale = float(schedule.sigmas[self.timesteps[0]]) if schedule.sigma_data is not None else 1.0
        x_t = noise * scale
        for number in range(len(self.timesteps) - 1):
            later = (step > number).nonzero()[:, 0]
            # Where no sample goes on, one does for nothing: all ranks must call a sharded network as often.
            rows = (later if len(later) else torch.zeros(1, dtype=torch.int64)).to(x_t.device)
            part = {key: value[rows.to(value.device)] for key, value in condition.items()}
            images = self.step(x_t[rows], part, torch.full((len(rows),), number))
            if len(later):
                level = schedule.at(self._index(torch.full((len(rows),), number + 1)))
                again = add_noise(images, self.fresh_noise(noise[rows], f"step {number + 1}"), level)
                x_t = x_t.index_copy(0, rows, again)
        return x_t

    def step(self, x_t: Tensor, condition: Condition, step: Tensor) -> Tensor:
        """One call of the network: the images [B, C, H, W] that each sample's step number [B] makes of `x_t`."""
        return self.denoiser(x_t, self.denoiser.schedule.at(self._index(step)), condition)

    def _index(self, step: Tensor) -> Tensor:
        """The indices [B] of the schedule at step numbers [B]."""
        return torch.tensor(self.timesteps)[step].to(self.denoiser.schedule.sigmas.device)
