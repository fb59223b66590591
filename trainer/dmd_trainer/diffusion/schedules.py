"""Noise schedules as tables: how much signal and noise a sample has at each index, and what the network is given.

x_t = alpha_t x_0 + sigma_t eps. Index 0 has the least noise, the last the most. Three families cover every teacher:
variance preserving (DDPM, Stable Diffusion), EDM (alpha = 1, Karras sigmas), and flow matching (alpha = 1 - sigma).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.prediction import Prediction, prediction_of
from dmd_trainer.diffusion.understood import EDM, FILE, FLOW, check_understood, make_scheduler, value_of

EDM_STEPS = 1000
"""How many Karras sigmas an EDM teacher's table has (DMD, arXiv 2311.18828, appendix B; the authors' code)."""
ROUNDING = 1e-6
"""By so much a step's noise may be less than the last one's: with a zero terminal SNR the last two are 1 but for it."""


@dataclass(frozen=True)
class NoiseLevel:
    """The noise level of each sample of a batch.

    Attributes:
        alpha: signal scale [B], float64.
        sigma: noise scale [B], float64.
        time: what the network is given [B], float64.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor

    def followed_by(self, other: "NoiseLevel") -> "NoiseLevel":
        """The levels of two batches in one."""
        alpha, sigma = torch.cat([self.alpha, other.alpha]), torch.cat([self.sigma, other.sigma])
        return NoiseLevel(alpha, sigma, torch.cat([self.time, other.time]))


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """`value` [B] as [B, 1, 1, 1] in the dtype and on the device of `like` [B, C, H, W], for products with it."""
    return value.to(device=like.device, dtype=like.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps: [B, C, H, W]."""
    return per_sample(level.alpha, x0) * x0 + per_sample(level.sigma, x0) * noise


@dataclass(frozen=True)
class Schedule:
    """A table of noise levels; index 0 has the least noise.

    Attributes:
        alphas: [N], float64.
        sigmas: [N], float64.
        times: [N], float64: the network's time input.
        sigma_data: the data's standard deviation where the teacher is EDM-preconditioned, else None.
        time_scale: EDM only: the network is given `time_scale` * ln(sigma).
        config: the diffusers scheduler's that the table is of.
    """

    alphas: Tensor
    sigmas: Tensor
    times: Tensor
    sigma_data: float | None = None
    time_scale: float = 0.25
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.sigmas)

    def at(self, index: Tensor) -> NoiseLevel:
        """The levels at integer indices [B]."""
        return NoiseLevel(self.alphas[index], self.sigmas[index], self.times[index])

    def at_sigma(self, sigma: Tensor) -> NoiseLevel:
        """The levels at noise scales [B] between the table's, for EDM schedules."""
        sigma = sigma.to(torch.float64)
        # ln 0 is not a time: the level without noise is given as the least noise that float64 can hold.
        return NoiseLevel(torch.ones_like(sigma), sigma, self.time_scale * sigma.clamp_min(1e-44).log())

    def to(self, device: torch.device | str) -> Self:
        """The same tables on another device."""
        return replace(self, alphas=self.alphas.to(device), sigmas=self.sigmas.to(device), times=self.times.to(device))


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`steps` noise scales from `sigma_max` down to `sigma_min`: [steps], float64 (EDM, arXiv 2206.00364, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def schedule_from_scheduler(config: Mapping[str, Any]) -> Schedule:
    """The table of a teacher's own diffusers scheduler.

    Args:
        config: the contents of `scheduler/scheduler_config.json`.

    Raises:
        BadInputError: the scheduler is of no family known here, has fields that are not understood, or values that make
            no schedule.
    """
    check_understood(config)
    schedule = _table(config)
    # Of such values diffusers makes NaN, or noise that falls as time goes on.
    if not (torch.isfinite(schedule.sigmas).all() and (schedule.sigmas.diff() > -ROUNDING).all()):
        raise BadInputError(
            f"{FILE}: its numbers make no noise schedule, whose noise grows from step to step; compare its betas or "
            "sigmas with those that the teacher was trained with"
        )
    return schedule


def _table(config: Mapping[str, Any]) -> Schedule:
    name = str(config["_class_name"])
    if name in FLOW:
        scheduler = make_scheduler(config, "FlowMatchEulerDiscreteScheduler")
        sigmas = scheduler.sigmas[: len(scheduler.timesteps)].flip(0).double()
        return Schedule(1 - sigmas, sigmas, scheduler.timesteps.flip(0).double(), config=config)
    if name in EDM:
        low, high, rho, sigma_data = (
            float(value_of(config, field)) for field in ("sigma_min", "sigma_max", "rho", "sigma_data")
        )
        sigmas = karras_sigmas(EDM_STEPS, low, high, rho).flip(0)
        # EDM's networks are given ln(sigma) / 4; those of consistency models a thousand times that.
        scale = 250.0 if name.startswith("CMStochastic") else 0.25
        return Schedule(torch.ones_like(sigmas), sigmas, scale * sigmas.log(), sigma_data, scale, config)
    products = make_scheduler(config).alphas_cumprod.double()
    # Some classes leave 2^-24 of signal at the noisiest level of a zero terminal SNR, where others leave none.
    no_signal = products[-1] == 0 or value_of(config, "rescale_betas_zero_snr")
    if no_signal and prediction_of(config) == Prediction.EPSILON:
        raise BadInputError(
            f"{FILE}: rescale_betas_zero_snr: an image cannot be told from noise without signal by a network that "
            "predicts the noise (prediction_type epsilon); set it to false, or prediction_type to what it predicts"
        )
    times = torch.arange(len(products), dtype=torch.float64)
    return Schedule(products.sqrt(), (1 - products).sqrt(), times, config=config)


def middle_indices(length: int, fraction: float = 0.96) -> tuple[int, int]:
    """The bounds [low, high) of the middle `fraction` of a table's indices.

    Distribution matching draws its t there: t ~ U(0.02 T, 0.98 T) (DMD, arXiv 2311.18828, section 4.2 and algorithm 1).
    """
    margin = (1 - fraction) / 2
    return math.floor(margin * length + 1e-9), math.ceil((1 - margin) * length - 1e-9)
