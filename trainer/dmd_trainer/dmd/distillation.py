"""Distribution Matching Distillation: its state, and its updates (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

The losses are in `step.py`, everything random in `draws.py`; here gradients are accumulated over micro-batches and the
networks updated. Everything that is not a function of (seed, step) is in `Distillation.state`: loading the state and
counting on from its step is resuming the run, bit for bit.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from dmd_api.spec import Spec, Training
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.solvers import guide
from dmd_trainer.distributed.collectives import ALONE, Ranks, local_slice
from dmd_trainer.distributed.sharding import set_gradient_sync, shard
from dmd_trainer.dmd.draws import Draws, TrainingData
from dmd_trainer.dmd.gan import FakeScore, gan_scale
from dmd_trainer.dmd.initial_weights import TEACHERS, InitialWeights, load_initial_weights
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.dmd.networks import Ema, TrainedNetwork, Update, whole_weights
from dmd_trainer.dmd.step import (
    Images,
    Models,
    RegressionLoss,
    fake_score_losses,
    generate,
    generator_losses,
    regression_alone,
)
from dmd_trainer.families.teacher import Teacher


@dataclass(frozen=True)
class StepReport:
    """What one step has to report, averaged over ranks.

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
        data: what is drawn from.
        regression_loss: of (generated, reference) images or latents, each [B, C, H, W].
        ranks: this process among those that share the batch.
        initial: weights to start from instead of the teacher's.

    With `method.fakeScoreUpdates` 0 there is no fake score, and the generator learns by the regression alone.
    """

    def __init__(
        self,
        teacher: Teacher,
        spec: Spec,
        data: TrainingData,
        regression_loss: RegressionLoss,
        ranks: Ranks = ALONE,
        initial: InitialWeights = TEACHERS,
    ) -> None:
        training, method = spec.training, spec.method
        self.teacher, self.training, self.method = teacher, training, method
        family = teacher.family

        network, average = teacher.trainable_network(), teacher.trainable_network()
        for copy in (network, average):
            load_initial_weights(copy, initial.generator, "generator")
            if method.lora is not None:
                with _seeded(training.seed):
                    add_lora(copy, method.lora, family.adapted_layers)
        self.generator_network = TrainedNetwork(
            "generator", network, training, training.learning_rate, training.betas, family.blocks(network)
        )
        self.fake_score_network = self._fake_score_network(initial) if method.fake_score_updates else None
        self.ema = Ema(average, training, family.blocks(average))
        if not teacher.offloaded:  # which takes no room on the device already
            frozen = teacher.denoiser.network
            shard(frozen, training, family.blocks(frozen))  # after the copies: shards cannot be copied

        autocast = torch.bfloat16 if training.precision == "bf16" else None
        timesteps = generator_timesteps(method, teacher.denoiser.schedule)
        denoiser = teacher.denoiser.with_network(network, autocast)
        fake_score = self.fake_score_network
        self.ema_generator = Generator(denoiser.with_network(average, autocast), timesteps)
        self.models = Models(
            generator=Generator(denoiser, timesteps),
            mu_real=guide(teacher.denoiser, spec.teacher.guidance_scale, data.conditions.negative),
            mu_fake=None if fake_score is None else denoiser.with_network(fake_score.module, autocast),
            regression_loss=regression_loss,
            divergence=method.divergence,
        )
        self.draws = Draws(data, spec, teacher, next(network.parameters()).dtype)

        # A batch's samples are numbered globally; this rank works on its own part, in micro-batches.
        indices = local_slice(training.batch_size, ranks)
        size = training.micro_batch_size or len(indices)
        self.micro_batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        self.local_batch = len(indices)
        self._gan_scale = gan_scale(teacher.sample_shape)
        self.step_count = 0

    def _fake_score_network(self, initial: InitialWeights) -> TrainedNetwork:
        copy, family = self.teacher.trainable_network(), self.teacher.family
        with _seeded(self.training.seed):
            network = FakeScore(copy, family.tap(copy) if self.method.gan is not None else None)
        load_initial_weights(network, initial.fake_score, "fakeScore")
        own, training = self.training.fake_score, self.training
        rate, betas = own.learning_rate or training.learning_rate, own.betas or training.betas
        return TrainedNetwork("fake score", network, training, rate, betas, family.blocks(copy))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.teacher.denoiser.schedule.sigmas.device

    @property
    def generator(self) -> Generator:
        """The generator in training."""
        return self.models.generator

    @property
    def mu_fake(self) -> Denoiser | None:
        """The fake score; None in a run without one."""
        return self.models.mu_fake

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

        update, generated = self._update_generator(step, factor, stop_requested)
        timer.lap("generator_update")

        losses = dict(update.losses)
        norms, rates = {"generator": update.gradient_norm}, {"generator": factor * self.generator_network.learning_rate}
        network, updates = self.fake_score_network, self.method.fake_score_updates
        if network is not None:
            for number in range(updates):
                images = generated if number == 0 else self._generate(step, number)
                found, norms["fake_score"] = self._update_fake_score(network, step, number, factor, images)
                for name, value in found.items():
                    losses[name] = losses.get(name, 0.0) + value / updates
            rates["fake_score"] = factor * network.learning_rate
            timer.lap("fake_score_updates")

        self.step_count += 1
        return StepReport(
            losses=losses,
            gradient_norms=norms,
            learning_rates=rates,
            seconds=timer.seconds,
            stop=update.stop,
        )

    def _update_generator(self, step: int, factor: float, stop: bool) -> tuple[Update, list[Images]]:
        """One update of the generator and its EMA; and the images, which the fake score learns from next."""
        weights = self._generator_weights(step)
        totals = _Totals()
        images: list[Images] = []
        self.generator_network.zero_grad()
        # The GAN term's gradients pass through the fake score; its own weights' would be thrown away.
        if self.fake_score_network is not None:
            self.fake_score_network.requires_grad(False)
        for indices in self.micro_batches:
            if self.mu_fake is None:
                losses = regression_alone(self.models, self.draws.pairs(step, indices))
            else:
                losses, generated = generator_losses(self.models, self.draws.generator(step, indices))
                images.append(generated)
            share = len(indices) / self.local_batch
            set_gradient_sync(self.generator_network.module, indices is self.micro_batches[-1])
            (share * torch.stack([weights[name] * value for name, value in losses.items()]).sum()).backward()
            totals.add(losses, share)

        if self.fake_score_network is not None:
            self.fake_score_network.requires_grad(True)
        update = self.generator_network.update(factor, totals.losses, step, stop=stop)
        self.ema.update(self.generator_network.module, step)
        return update, images

    def _generator_weights(self, step: int) -> dict[str, float]:
        weights = {"distribution_matching": 1.0, "regression": self.regression_weight(step)}
        if self.method.gan is not None:
            weights["gan_generator"] = self.method.gan.generator_weight / self._gan_scale
        return weights

    def _generate(self, step: int, update: int) -> Iterable[Images]:
        """Images for a further update of the fake score, each micro-batch's when it is asked for."""
        for indices in self.micro_batches:
            yield generate(self.models, self.draws.latent(step, update, indices))

    def _update_fake_score(
        self, network: TrainedNetwork, step: int, number: int, factor: float, batches: Iterable[Images]
    ) -> tuple[dict[str, float], float]:
        """One update of the fake score on generated images, and of the GAN's head; returns losses and gradient norm."""
        totals = _Totals()
        network.zero_grad()
        for part, (indices, generated) in enumerate(zip(self.micro_batches, batches, strict=True)):
            draws = self.draws.fake_score(step, number, part, self.micro_batches, generated.condition)
            losses = fake_score_losses(self.models, generated, draws)
            loss = losses["fake_score"]
            if self.method.gan is not None:
                loss = loss + self.method.gan.guidance_weight / self._gan_scale * losses["gan_discriminator"]
            share = len(indices) / self.local_batch
            set_gradient_sync(network.module, indices is self.micro_batches[-1])
            (loss * share).backward()
            totals.add(losses, share)
        update = network.update(factor, totals.losses, step)
        return update.losses, update.gradient_norm

    def regression_weight(self, step: int) -> float:
        """The regression loss's weight at `step`, from `method.regression`."""
        regression = self.method.regression
        if regression is None:
            return 0.0
        if regression.weight_schedule == "constant":
            return regression.weight
        return regression.weight * 0.5 * (1 + math.cos(math.pi * step / self.training.generator_updates))

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


class _Totals:
    """Sums up the losses of a step's micro-batches."""

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], share: float) -> None:
        """Adds a micro-batch's, which is this `share` of the batch."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, torch.zeros_like(value)) + value.detach() * share
