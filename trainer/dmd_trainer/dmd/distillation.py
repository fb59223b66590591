"""Distribution Matching Distillation: its state, and one step of it (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

Everything random in step n is keyed by (seed, n, global sample index), everything else is in `Distillation.state`:
loading the state and counting on from its step is resuming the run, bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from dmd_api.manifest import Spec, Training
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.data.real_images import RealImages
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, middle_indices
from dmd_trainer.diffusion.solvers import guide
from dmd_trainer.distributed.collectives import local_slice
from dmd_trainer.distributed.sharding import set_gradient_sync, shard
from dmd_trainer.dmd.gan import FakeScore, discriminator_loss, generator_loss
from dmd_trainer.dmd.initial_weights import load_initial_weights
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.dmd.losses import (
    denoising_loss,
    distribution_matching_gradient,
    distribution_matching_loss,
)
from dmd_trainer.dmd.networks import Ema, TrainedNetwork, whole_weights
from dmd_trainer.families.teacher import Teacher


@dataclass(frozen=True)
class InitialWeights:
    """Weights of an earlier run, by name; None: the teacher's."""

    generator: dict[str, Tensor] | None = None
    fake_score: dict[str, Tensor] | None = None


class Generated(NamedTuple):
    """Images of the generator, without gradients, and what they were made for.

    Attributes:
        images: [B, C, H, W].
        condition: each [B, ...].
    """

    images: Tensor
    condition: Condition


@dataclass(frozen=True)
class StepReport:
    """What one step has to say, averaged over ranks.

    Attributes:
        losses: by name: `distribution_matching`, `regression` (with pairs), `fake_score`, and with a GAN term
            `gan_generator` and `gan_discriminator`; `regression` alone without a fake score.
        gradient_norms: before clipping: `generator`, `fake_score`.
        learning_rates: `generator`, `fake_score`.
        seconds: this rank's time: `generator_update`, `fake_score_updates`.
        stop: some rank was told to stop.
    """

    losses: dict[str, float]
    gradient_norms: dict[str, float]
    learning_rates: dict[str, float]
    seconds: dict[str, float]
    stop: bool


def schedule_factor(step: int, training: Training) -> float:
    """The learning rate at `step` as a fraction of its base: linear warm-up, then constant or a cosine down to 0."""
    warmup = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.learning_rate_schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * step / training.generator_updates))


@dataclass
class _Timer:
    """Sums up the wall-clock time of named parts."""

    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._started
        self._started = now


class Distillation:
    """The trained networks and the step that trains them.

    Args:
        teacher: frozen; generator, fake score and EMA start as copies of its network.
        spec: the manifest's.
        conditions: what conditions are drawn from.
        pairs: the teacher's ODE pairs, where the method regresses on them.
        regression_loss: of (generated, reference) images or latents, each [B, C, H, W].
        rank: this process among `world_size`.
        world_size: how many share the batch.
        real_images: for the GAN term.
        initial: weights to start from instead of the teacher's.

    With `method.fakeScoreUpdates` 0 there is no fake score, and the generator learns by the regression alone.
    """

    def __init__(
        self,
        teacher: Teacher,
        spec: Spec,
        conditions: Conditions,
        pairs: Pairs | None,
        regression_loss: Callable[[Tensor, Tensor], Tensor],
        rank: int = 0,
        world_size: int = 1,
        real_images: RealImages | None = None,
        initial: InitialWeights | None = None,
    ) -> None:
        training, method = spec.training, spec.method
        self.teacher, self.training, self.method = teacher, training, method
        self.conditions, self.pairs, self.regression_loss = conditions, pairs, regression_loss
        self.real_images, self.gan = real_images, method.gan
        self.device = teacher.denoiser.schedule.sigmas.device
        self.mu_real = guide(teacher, spec.teacher.guidance_scale, conditions.negative)
        initial = initial or InitialWeights()

        network, average = teacher.trainable_network(), teacher.trainable_network()
        self.dtype = next(network.parameters()).dtype
        for copy in (network, average):
            load_initial_weights(copy, initial.generator, "generator")
            if method.lora is not None:
                with _seeded(training.seed):
                    add_lora(copy, method.lora)
        self.generator_network = TrainedNetwork("generator", network, training, training.learning_rate, training.betas)
        self.fake_score_network = self._fake_score_network(initial) if method.fake_score_updates else None
        self.ema = Ema(average, training)
        if not teacher.offloaded:  # which takes no room on the device already
            shard(teacher.denoiser.network, training)  # after the copies: shards cannot be copied

        autocast = torch.bfloat16 if training.precision == "bf16" else None
        timesteps = generator_timesteps(method, teacher.denoiser.schedule)
        denoiser = teacher.denoiser.with_network(network, autocast)
        self.generator = Generator(denoiser, timesteps)
        self.ema_generator = Generator(denoiser.with_network(average, autocast), timesteps)
        self.mu_fake: Denoiser | None = None
        if self.fake_score_network is not None:
            self.mu_fake = denoiser.with_network(self.fake_score_network.module, autocast)

        # A batch's samples are numbered globally; this rank works on its own part, in micro-batches.
        indices = local_slice(training.batch_size, rank, world_size)
        size = training.micro_batch_size or len(indices)
        self.micro_batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        self.local_batch = len(indices)
        self.step_count = 0

    def _fake_score_network(self, initial: InitialWeights) -> TrainedNetwork:
        with _seeded(self.training.seed):
            network = FakeScore(self.teacher.trainable_network(), gan=self.gan is not None)
        load_initial_weights(network, initial.fake_score, "fakeScore")
        own, training = self.training.fake_score, self.training
        return TrainedNetwork(
            "fake score", network, training, own.learning_rate or training.learning_rate, own.betas or training.betas
        )

    def step(self, stop_requested: bool = False) -> StepReport:
        """One generator update and the fake score's updates that follow it.

        Args:
            stop_requested: whether this rank was told to stop; the report says whether any was.

        Raises:
            TrainingDivergedError: a loss or a gradient is not finite, or a loss is beyond `training.maxLoss`.
        """
        step = self.step_count
        factor = schedule_factor(step, self.training)
        timer = _Timer()

        losses, generator_norm, generated = self._update_generator(step, factor, float(stop_requested))
        stop = losses.pop("stop") > 0
        timer.lap("generator_update")

        norms, rates = {"generator": generator_norm}, {"generator": factor * self.generator_network.learning_rate}
        updates = self.method.fake_score_updates
        for update in range(updates):
            batches = generated if update == 0 else self._fresh_images(step, update)
            found, norms["fake_score"] = self._update_fake_score(step, update, factor, batches)
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + value / updates
        if self.fake_score_network is not None:
            rates["fake_score"] = factor * self.fake_score_network.learning_rate
            timer.lap("fake_score_updates")

        self.step_count += 1
        return StepReport(
            losses=losses,
            gradient_norms=norms,
            learning_rates=rates,
            seconds=timer.seconds,
            stop=stop,
        )

    def _update_generator(
        self, step: int, factor: float, stop: float
    ) -> tuple[dict[str, float], float, list[Generated]]:
        """One update of the generator and its EMA; returns losses, gradient norm, and images with their conditions."""
        totals: dict[str, Tensor] = {}
        images: list[Generated] = []
        weights = {"distribution_matching": 1.0, "regression": self.regression_weight(step)}
        if self.gan is not None:
            weights["gan_generator"] = self.gan.generator_weight
        number = self._generator_step("generator update", step)
        self.generator_network.zero_grad()
        # The GAN term's gradients pass through the fake score; its own weights' would be thrown away.
        if self.fake_score_network is not None:
            self.fake_score_network.requires_grad(False)
        for indices in self.micro_batches:
            random = KeyedRandom(self.training.seed, "generator update", step, indices)
            if self.mu_fake is None:
                losses = {"regression": self._regression_alone(random)}
            else:
                losses, generated = self._generator_losses(self.mu_fake, random, number)
                images.append(generated)
            share = len(indices) / self.local_batch
            set_gradient_sync(self.generator_network.module, indices is self.micro_batches[-1])
            (share * torch.stack([weights[name] * value for name, value in losses.items()]).sum()).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * share

        if self.fake_score_network is not None:
            self.fake_score_network.requires_grad(True)
        averaged, norm = self.generator_network.update(factor, {**totals, "stop": stop}, step)
        self.ema.update(self.generator_network.module, step)
        return averaged, norm, images

    def _generator_losses(
        self, mu_fake: Denoiser, random: KeyedRandom, number: int
    ) -> tuple[dict[str, Tensor], Generated]:
        """What the generator learns from in its step `number`, and the images that the fake score learns from next."""
        schedule = self.teacher.denoiser.schedule
        condition, noise = self._draw_inputs(random)
        index = random.integers(*middle_indices(len(schedule)))
        eps = self._normal(random)

        with torch.no_grad():
            x_in = self.generator.input(noise, condition, number)
        # One call for both losses: a generator pass over twice the batch costs less than two passes.
        if self.pairs is not None:
            x_pairs_in, reference, pair_condition = self._draw_pairs(self.pairs, random)
            both = {key: torch.cat([value, pair_condition[key]]) for key, value in condition.items()}
            x, x_pairs = self.generator.step(torch.cat([x_in, x_pairs_in]), both, number).chunk(2)
        else:
            x = self.generator.step(x_in, condition, number)

        level = schedule.at(index.to(self.device))
        with torch.no_grad():
            x_t = add_noise(x, eps, level)
            gradient = distribution_matching_gradient(
                x, self.mu_real(x_t, level, condition), mu_fake(x_t, level, condition), level
            )
        losses = {"distribution_matching": distribution_matching_loss(x, gradient)}
        if self.pairs is not None:
            losses["regression"] = self.regression_loss(x_pairs, reference.to(x))
        if self.gan is not None:
            losses["gan_generator"] = generator_loss(self._classify(mu_fake, x, condition, random))
        return losses, Generated(x.detach(), condition)

    def _regression_alone(self, random: KeyedRandom) -> Tensor:
        """The regression loss, where there is no fake score to match distributions with."""
        assert self.pairs is not None, "the manifest's own rules ask for them"
        x_in, reference, condition = self._draw_pairs(self.pairs, random)
        x = self.generator.step(x_in, condition, 0)
        return self.regression_loss(x, reference.to(x))

    def _draw_pairs(self, pairs: Pairs, random: KeyedRandom) -> tuple[Tensor, Tensor, Condition]:
        """The generator's inputs, the teacher's images of the same noise, and the conditions of some of the pairs."""
        noise, reference, drawn = pairs.at(random.integers(0, len(pairs)))
        condition = self.conditions.embed(drawn, self.device)
        return self.generator.input(noise.to(self.device, self.dtype), condition, 0), reference, condition

    @torch.no_grad()
    def _fresh_images(self, step: int, update: int) -> Iterable[Generated]:
        """The generator's images for a further fake-score update, made without gradients, and their conditions."""
        stream = f"fresh images {update}"
        number = self._generator_step(stream, step)
        for indices in self.micro_batches:
            condition, noise = self._draw_inputs(KeyedRandom(self.training.seed, stream, step, indices))
            x_in = self.generator.input(noise, condition, number)
            yield Generated(self.generator.step(x_in, condition, number), condition)

    def _update_fake_score(
        self, step: int, update: int, factor: float, batches: Iterable[Generated]
    ) -> tuple[dict[str, float], float]:
        """One update of the fake score on generated images, and of the GAN's head; returns losses and gradient norm."""
        network, mu_fake, schedule = self.fake_score_network, self.mu_fake, self.teacher.denoiser.schedule
        assert network is not None, "it has updates"
        assert mu_fake is not None
        network.zero_grad()
        totals: dict[str, Tensor] = {}
        for part, (indices, (images, condition)) in enumerate(zip(self.micro_batches, batches, strict=True)):
            random = KeyedRandom(self.training.seed, f"fake score update {update}", step, indices)
            level = schedule.at(random.integers(0, len(schedule)).to(self.device))
            eps = self._normal(random)
            losses = {"fake_score": denoising_loss(mu_fake, images, eps, level, condition)}
            loss = losses["fake_score"]
            if self.gan is not None:
                real, real_condition = self._real_images((step, update, part), condition)
                losses["gan_discriminator"] = discriminator_loss(
                    self._classify(mu_fake, real, real_condition, random),
                    self._classify(mu_fake, images, condition, random),
                )
                loss = loss + self.gan.guidance_weight * losses["gan_discriminator"]
            share = len(indices) / self.local_batch
            set_gradient_sync(network.module, indices is self.micro_batches[-1])
            (loss * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * share
        return network.update(factor, totals, step)

    def _classify(self, mu_fake: Denoiser, x: Tensor, condition: Condition, random: KeyedRandom) -> Tensor:
        """The GAN head's logits [B] of images noised to a random level of all (arXiv 2405.14867, section 4.3)."""
        schedule = self.teacher.denoiser.schedule
        level: NoiseLevel = schedule.at(random.integers(0, len(schedule)).to(self.device))
        x_t = add_noise(x, self._normal(random), level)
        return mu_fake.call_network(x_t, level, condition, classify=True).to(x.dtype)

    def _real_images(self, place: tuple[int, int, int], condition: Condition) -> tuple[Tensor, Condition]:
        """As many real images as the batch has, and their conditions: their own labels or captions, or else those of
        the generated images.

        Args:
            place: step, update and micro-batch; the next one's images are fetched while this one's are computed with.
            condition: the generated images'.
        """
        assert self.real_images is not None, "the manifest's own rules ask for them"
        images, labels = self.real_images.at(self._real_indices(*place))
        step, update, part = place
        if part + 1 < len(self.micro_batches):
            following = (step, update, part + 1)
        else:
            following = (step, update + 1, 0) if update + 1 < self.method.fake_score_updates else (step + 1, 0, 0)
        self.real_images.prefetch(self._real_indices(*following))
        known = {key: labels[key].to(self.device) for key in condition if key in labels}
        return images.to(self.device, self.dtype), {**condition, **known}

    def _real_indices(self, step: int, update: int, part: int) -> Tensor:
        assert self.real_images is not None
        random = KeyedRandom(self.training.seed, f"real images {update}", step, self.micro_batches[part])
        return random.integers(0, len(self.real_images))

    def _generator_step(self, stream: str, step: int) -> int:
        """Which of the generator's steps this update is about: the same for the whole batch, on every rank."""
        count = len(self.generator.timesteps)
        return int(KeyedRandom(self.training.seed, f"{stream}: step", step, [0]).integers(0, count)) if count > 1 else 0

    def regression_weight(self, step: int) -> float:
        """The regression loss's weight at `step`, from `method.regression`."""
        regression = self.method.regression
        if regression is None:
            return 0.0
        if regression.weight_schedule == "constant":
            return regression.weight
        return regression.weight * 0.5 * (1 + math.cos(math.pi * step / self.training.generator_updates))

    def _draw_inputs(self, random: KeyedRandom) -> tuple[Condition, Tensor]:
        condition = self.conditions.embed(self.conditions.draw(random), self.device)
        return condition, self._normal(random)

    def _normal(self, random: KeyedRandom) -> Tensor:
        return random.normal(self.teacher.sample_shape).to(self.device, self.dtype)

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged generator's weights, whole, on the CPU; called by every rank, empty but on the first."""
        return whole_weights(self.ema.module)

    def fake_score_weights(self) -> dict[str, Tensor]:
        """The fake score's weights and its head's, as `ema_weights`; empty without one."""
        return {} if self.fake_score_network is None else whole_weights(self.fake_score_network.module)

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, as nested dictionaries of tensors."""
        state = {"generator": self.generator_network.state(), "ema": get_model_state_dict(self.ema.module)}
        if self.fake_score_network is not None:
            state["fake_score"] = self.fake_score_network.state()
        return state

    def load_state(self, state: dict[str, Any], step: int) -> None:
        """Takes up `state`, as `state()` gave it after `step` steps."""
        self.generator_network.load_state(state["generator"])
        if self.fake_score_network is not None:
            self.fake_score_network.load_state(state["fake_score"])
        set_model_state_dict(self.ema.module, state["ema"])
        self.step_count = step


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """New weights (a GAN's head, adapters) from the run's seed: the same on every rank and in every attempt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
