"""Everything random in a training step, keyed by (seed, stream, step, global sample index).

The order in which numbers are taken from a stream is part of what a seed means: changing it changes every run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmd_api.spec import Gan, NoiseRange, Spec
from dmd_trainer.conditions.base import Conditions, Drawn
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import middle_indices
from dmd_trainer.dmd.step import FakeScoreDraws, GeneratorDraws, Images, Latent, Noise, PairBatch
from dmd_trainer.families.teacher import Teacher


class Pairs(Protocol):
    """The teacher's ODE pairs by number."""

    def __len__(self) -> int: ...

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor, Drawn]:
        """Noise and images [B, C, H, W], and their conditions by number."""
        ...


class RealImages(Protocol):
    """Real images by number, in the teacher's space."""

    def __len__(self) -> int: ...

    def at(self, indices: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Images or latents [B, C, H, W], and what is known of their conditions, each [B, ...]."""
        ...

    def prefetch(self, indices: Tensor) -> None:
        """Begins reading what is asked for next."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a step draws from.

    Attributes:
        conditions: of generated images.
        pairs: where the method regresses on them.
        real_images: where it has a GAN term.
    """

    conditions: Conditions
    pairs: Pairs | None = None
    real_images: RealImages | None = None


class Draws:
    """Draws what a step needs, for one micro-batch at a time.

    Args:
        data: what is drawn from.
        spec: the manifest's.
        teacher: whose schedule and sample shape the draws have.
        dtype: of noise.
    """

    def __init__(self, data: TrainingData, spec: Spec, teacher: Teacher, dtype: torch.dtype) -> None:
        self.data = data
        self._seed, self._gan = spec.training.seed, spec.method.gan
        self._matching, self._guidance = spec.method.matching_noise, spec.method.guidance_noise
        self._fake_score_updates, self._generator_steps = spec.method.fake_score_updates, spec.method.generator_steps
        self._schedule, self._shape, self._dtype = teacher.denoiser.schedule, teacher.sample_shape, dtype
        self._device = self._schedule.sigmas.device

    def generator_step(self, step: int, update: int, indices: Sequence[int]) -> Tensor:
        """The numbers of the generator's steps that an update is about, one for each sample [B].

        Args:
            step: the generator updates done.
            update: 0 for the generator's own; else the number of the fake score's update that images are made for.
            indices: the samples'.
        """
        if self._generator_steps == 1:
            return torch.zeros(len(indices), dtype=torch.int64)
        random = KeyedRandom(self._seed, f"{_latent_stream(update)}: step", step, indices)
        return random.integers(0, self._generator_steps)

    def generator(self, step: int, indices: Sequence[int]) -> GeneratorDraws:
        """Draws for one generator update on the samples `indices`."""
        random = KeyedRandom(self._seed, _latent_stream(0), step, indices)
        latent = self._latent(random, self.generator_step(step, 0, indices))
        matching = self._noise(random, *matching_indices(self._matching, len(self._schedule)))
        pairs = self._pairs(random) if self.data.pairs is not None else None
        gan = self._gan_noise(random, self._gan) if self._gan is not None else None
        guidance = None if self._guidance is None else self._noise(random, *_bounds(self._guidance))
        return GeneratorDraws(latent, matching, pairs, gan, guidance)

    def pairs(self, step: int, indices: Sequence[int]) -> PairBatch:
        """Draws for a generator update by regression alone."""
        return self._pairs(KeyedRandom(self._seed, _latent_stream(0), step, indices))

    def latent(self, step: int, update: int, indices: Sequence[int]) -> Latent:
        """Draws what further images are generated from, for the fake score's update number `update`."""
        random = KeyedRandom(self._seed, _latent_stream(update), step, indices)
        return self._latent(random, self.generator_step(step, update, indices))

    def fake_score(
        self, step: int, update: int, part: int, parts: Sequence[Sequence[int]], condition: Condition
    ) -> FakeScoreDraws:
        """Draws for one update of the fake score on one micro-batch of generated images.

        Args:
            step: the generator updates done.
            update: the number of the fake score's update that follows it.
            part: the micro-batch's number.
            parts: the global sample indices of all micro-batches.
            condition: the generated images'.
        """
        random = KeyedRandom(self._seed, f"fake score update {update}", step, parts[part])
        denoising = self._noise(random, *self._fake_score_indices())
        if self._gan is None:
            return FakeScoreDraws(denoising)
        real = self._real_images((step, update, part), parts, condition)
        on_real = self._gan_noise(random, self._gan)
        # Where the head sees no more than some levels, it sees generated images at noise of its own.
        on_generated = None if self._gan.max_timestep is None else self._gan_noise(random, self._gan)
        return FakeScoreDraws(denoising, (real, on_real), on_generated)

    def _latent(self, random: KeyedRandom, numbers: Tensor) -> Latent:
        condition = self.data.conditions.embed(self.data.conditions.draw(random), self._device)
        return Latent(self._normal(random), condition, numbers)

    def _pairs(self, random: KeyedRandom) -> PairBatch:
        assert self.data.pairs is not None, "the manifest's own rules ask for them"
        noise, reference, drawn = self.data.pairs.at(random.integers(0, len(self.data.pairs)))
        condition = self.data.conditions.embed(drawn, self._device)
        return PairBatch(noise.to(self._device, self._dtype), reference, condition)

    def _noise(self, random: KeyedRandom, low: int, high: int) -> Noise:
        """Noise at indices of the schedule in [low, high)."""
        level = self._schedule.at(random.integers(low, high).to(self._device))
        return Noise(self._normal(random), level)

    def _fake_score_indices(self) -> tuple[int, int]:
        """All of the schedule, or no more than what is matched: what it learnt elsewhere nobody would ask it for."""
        return (0, len(self._schedule)) if self._matching is None else _bounds(self._matching)

    def _gan_noise(self, random: KeyedRandom, gan: Gan) -> Noise:
        """The discriminator sees the fake score's levels of noise (arXiv 2405.14867, section 4.3: all), or those up to
        a bound of its own.
        """
        low, high = self._fake_score_indices() if gan.max_timestep is None else (0, gan.max_timestep + 1)
        return self._noise(random, low, high)

    def _normal(self, random: KeyedRandom) -> Tensor:
        return random.normal(self._shape).to(self._device, self._dtype)

    def _real_images(self, place: tuple[int, int, int], parts: Sequence[Sequence[int]], condition: Condition) -> Images:
        """As many real images as the batch has, and their conditions: their own labels or captions, or else those of
        the generated images. The next micro-batch's images are fetched while this one's are computed with.
        """
        assert self.data.real_images is not None, "the manifest's own rules ask for them"
        images, labels = self.data.real_images.at(self._real_indices(*place, parts))
        step, update, part = place
        if part + 1 < len(parts):
            following = (step, update, part + 1)
        else:
            following = (step, update + 1, 0) if update + 1 < self._fake_score_updates else (step + 1, 0, 0)
        self.data.real_images.prefetch(self._real_indices(*following, parts))
        known = {key: labels[key].to(self._device) for key in condition if key in labels}
        return Images(images.to(self._device, self._dtype), {**condition, **known})

    def _real_indices(self, step: int, update: int, part: int, parts: Sequence[Sequence[int]]) -> Tensor:
        assert self.data.real_images is not None
        random = KeyedRandom(self._seed, f"real images {update}", step, parts[part])
        return random.integers(0, len(self.data.real_images))


def matching_indices(noise: NoiseRange | None, length: int) -> tuple[int, int]:
    """The indices [low, high) of a schedule of `length` at which distributions are matched: `method.matchingNoise`."""
    return middle_indices(length) if noise is None else _bounds(noise)


def _bounds(levels: NoiseRange) -> tuple[int, int]:
    """The indices [low, high) of noise levels."""
    return levels.min_timestep, levels.max_timestep + 1


def _latent_stream(update: int) -> str:
    return f"fresh images {update}" if update else "generator update"
