"""The one-step generator: the teacher's network, called once at one noise level."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_trainer.denoiser import Condition, Denoiser


@dataclass(frozen=True)
class OneStepGenerator:
    """x = G(z): the x0 prediction of pure noise at `timestep` (DMD, arXiv 2311.18828, section 4.1).

    Attributes:
        denoiser: the trainable copy of the teacher behind the teacher's preconditioning.
        timestep: the index of the noise level in the teacher's schedule.
    """

    denoiser: Denoiser
    timestep: int

    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        """Images or latents [B, C, H, W] from unit-variance noise [B, C, H, W]."""
        schedule = self.denoiser.schedule
        index = torch.full((len(noise),), self.timestep, device=schedule.sigmas.device)
        # Samplers start variance-preserving and flow models at unit variance, EDM's at sigma.
        scale = float(schedule.sigmas[self.timestep]) if schedule.sigma_data is not None else 1.0
        return self.denoiser(noise * scale, schedule.at(index), condition)
