"""Measures a run's health: the generator's images beside the teacher's, always for the same noise.

The probe stands beside the training step: it draws nothing that training draws, and changes nothing.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from dmd_api.spec import NoiseRange
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import add_noise, per_sample
from dmd_trainer.diffusion.solvers import Solver, teacher_solver
from dmd_trainer.dmd.draws import matching_indices
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext

SAMPLES = 32
"""Images of all ranks together, rounded up to an even number a rank."""
MICRO_BATCH = 16
EXTREME = 0.999
"""The teacher's values reach as far from their mean as this quantile says; what is 10 % beyond is saturated."""


@dataclass(frozen=True)
class _Batch:
    """Some of the probe's samples; neighbours (0 and 1, 2 and 3, ...) share their condition.

    Attributes:
        noise: the generator's [B, C, H, W].
        condition: each [B, ...].
        reference: the teacher's images of the same noise and conditions [B, C, H, W].
        index: the noise levels [B] of the denoising losses.
        eps: their noise [B, C, H, W].
    """

    noise: Tensor
    condition: Condition
    reference: Tensor
    index: Tensor
    eps: Tensor


class HealthProbe:
    """Measures generator and fake score against the teacher, on all ranks together.

    Args:
        teacher: frozen; losses are its own without guidance, which is what the fake score started as.
        solver: the teacher's sampler, as the generator should look; its noise is no training pair's.
        conditions: what conditions are drawn from.
        seed: the run's.
        rank: this process among `world_size`.
        world_size: how many share the samples.
        micro_batch: at most so many samples go through a network at once.
        unguided: the sampler without guidance, where `solver` has it.
        matching: the noise at which distributions are matched, and scores compared.
    """

    def __init__(
        self,
        teacher: Teacher,
        solver: Solver,
        conditions: Conditions,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = MICRO_BATCH,
        unguided: Solver | None = None,
        matching: NoiseRange | None = None,
    ) -> None:
        self._teacher = teacher.denoiser
        schedule = teacher.denoiser.schedule
        device, dtype = schedule.sigmas.device, torch.float32
        pairs = -(-SAMPLES // (2 * world_size))  # of this rank
        size = max(1, micro_batch // 2)
        low, high = matching_indices(matching, len(schedule))
        self._batches = []
        for start in range(0, pairs, size):
            count = min(size, pairs - start)
            pair = [rank * pairs + start + number for number in range(count)]
            number = [2 * p + twin for p in pair for twin in (0, 1)]
            drawn = conditions.draw(KeyedRandom(seed, "health conditions", 0, pair))
            condition = conditions.embed({k: v.repeat_interleave(2, 0) for k, v in drawn.items()}, device)
            random = KeyedRandom(seed, "health", 0, number)
            noise = random.normal(teacher.sample_shape).to(device, dtype)
            eps = random.normal(teacher.sample_shape).to(device, dtype)
            # Levels in the golden ratio's order fill their range evenly, however many of the samples a rank has.
            share = torch.tensor([(n * 0.6180339887498949) % 1 for n in number])
            index = (low + share * (high - low)).long().to(device)
            self._batches.append(_Batch(noise, condition, solver(noise, condition), index, eps))
        reference = torch.cat([batch.reference for batch in self._batches])
        self._mean, self._std, self._distance = self._moments(reference)
        far = (reference - reference.mean()).abs().flatten()
        self._reach = 1.1 * float(_average(far.kthvalue(max(1, int(EXTREME * len(far)))).values))
        self._centre = float(_average(reference.mean()))
        self._constant: dict[str, float] = {}
        if unguided is not None:
            _, plain, _ = self._moments(torch.cat([unguided(b.noise, b.condition) for b in self._batches]))
            self._constant["guidance_contrast"] = float((self._std / plain).max())
        with torch.no_grad():
            own = [self._denoise(self._teacher, batch, batch.reference)[1] for batch in self._batches]
        self._own_loss = float(_average(torch.cat(own).mean()))

    @classmethod
    def of_run(cls, context: StageContext, teacher: Teacher, conditions: Conditions) -> Self:
        """The probe of a run, against images that the teacher makes as it makes the pairs."""
        spec = context.manifest.spec
        context.progress.update(activity="drawing the teacher's images")
        solver, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
        scale = spec.teacher.guidance_scale
        return cls(
            teacher,
            teacher_solver(teacher.denoiser, solver, steps, scale, conditions.negative),
            conditions,
            spec.training.seed,
            context.rank,
            context.world_size,
            unguided=None if scale == 1 else teacher_solver(teacher.denoiser, solver, steps),
            matching=spec.method.matching_noise,
        )

    @torch.no_grad()
    def measure(self, generator: Generator, mu_fake: Denoiser | None) -> dict[str, float]:
        """Measures, averaged over the ranks; every rank calls it and sees the same.

        Args:
            generator: the one in training, not its average: it is the first to fall.
            mu_fake: the fake score; None in a run without one.

        Returns:
            Those of the fake score are left out in a run without one.

            `fake_score_loss`: the fake score's denoising loss on the generator's images, over the teacher's on its own;
            `teacher_loss`: the teacher's loss on the generator's images, over that on its own: how foreign they are;
            `score_difference`: mean|mu_fake - mu_real| / mean|x - mu_real|; 0 for a fake score that has not moved;
            `diversity`: the mean squared distance of two images of one condition, over that of the teacher's;
            `saturation`: the share of values beyond the teacher's extremes;
            `colour_drift`: the largest shift of a channel's mean, in standard deviations of the teacher's values;
            `contrast`: the channels' standard deviation over the teacher's, in the channel where it is furthest from 1;
            `guidance_contrast`: with guidance, the standard deviation of the teacher's own images over that without,
            in the channel where it grows most; it never changes;
            `regression_error`: the mean squared distance to the teacher's image of the same noise, over that of two of
            the teacher's images of one condition; these noises are in no training pair.
        """
        images, differences, distances, fake_losses, teacher_losses = [], [], [], [], []
        for batch in self._batches:
            x = generator(batch.noise, batch.condition)
            mu_real, teacher_loss = self._denoise(self._teacher, batch, x)
            # The teacher stands in for a fake score that is not there: every rank averages the same numbers.
            mu_fake_x, fake_loss = self._denoise(mu_fake, batch, x) if mu_fake else (mu_real, teacher_loss)
            images.append(x)
            differences.append((mu_fake_x - mu_real).abs().flatten(1).mean(1))
            distances.append((x - mu_real).abs().flatten(1).mean(1))
            fake_losses.append(fake_loss)
            teacher_losses.append(teacher_loss)
        x, reference = torch.cat(images), torch.cat([batch.reference for batch in self._batches])
        mean, std, distance = self._moments(x)
        contrast = std / self._std
        difference, far, error, beyond, fake_loss, teacher_loss = _average(
            torch.stack(
                [
                    torch.cat(differences).mean(),
                    torch.cat(distances).mean(),
                    (x - reference).square().mean(),
                    ((x - self._centre).abs() > self._reach).float().mean(),
                    torch.cat(fake_losses).mean(),
                    torch.cat(teacher_losses).mean(),
                ]
            )
        ).tolist()
        of_fake_score = {
            "fake_score_loss": fake_loss / self._own_loss,
            "score_difference": difference / max(far, torch.finfo(torch.float32).tiny),
        }
        return {
            **(of_fake_score if mu_fake else {}),
            "teacher_loss": teacher_loss / self._own_loss,
            "diversity": float(distance / self._distance),
            "saturation": beyond,
            "colour_drift": float(((mean - self._mean).abs() / self._std).max()),
            "contrast": float(contrast[contrast.log().abs().argmax()]),
            "regression_error": error / float(self._distance),
            **self._constant,
        }

    def _denoise(self, denoiser: Denoiser, batch: _Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        """The x0 prediction [B, C, H, W] of noised `x`, and its loss [B], weighted as `losses.denoising_loss`."""
        level = self._teacher.schedule.at(batch.index)
        prediction = denoiser(add_noise(x, batch.eps, level), level, batch.condition)
        error = (prediction - x) / per_sample(denoiser.scalings(level).out, x)
        return prediction, error.square().flatten(1).mean(1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation by channel [C], and the mean squared distance of two images of one condition."""
        channels = x.movedim(1, 0).flatten(1)
        distance = (x[0::2] - x[1::2]).square().mean()
        moments = _average(torch.stack([*channels.mean(1), *channels.square().mean(1), distance]))
        mean, square = moments[: x.shape[1]], moments[x.shape[1] : -1]
        return mean, (square - mean.square()).clamp_min(1e-12).sqrt(), moments[-1]


def _average(value: Tensor) -> Tensor:
    """The mean over the ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
