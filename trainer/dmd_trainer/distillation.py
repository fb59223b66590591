"""Distribution Matching Distillation: its state, and one step of it (arXiv 2311.18828, algorithm 1).

Everything random in step n is keyed by (seed, n, global sample index), everything else is in `Distillation.state`:
loading the state and counting on from its step is resuming the run, bit for bit.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dmd_api.errors import TrainingDivergedError
from dmd_api.manifest import Spec, Training
from dmd_trainer.conditions import Conditions, to_device
from dmd_trainer.distributed import average_gradients, local_slice
from dmd_trainer.generator import OneStepGenerator
from dmd_trainer.keyed import Draws
from dmd_trainer.losses import (
    denoising_loss,
    distribution_matching_gradient,
    distribution_matching_loss,
)
from dmd_trainer.pairs import Pairs
from dmd_trainer.schedules import add_noise, middle_indices
from dmd_trainer.solvers import guide
from dmd_trainer.teachers import Teacher


@dataclass(frozen=True)
class StepReport:
    """What one step has to say, averaged over ranks.

    Attributes:
        losses: by name: `distribution_matching`, `regression` (where there are pairs), `fake_score`.
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


def ema_decay(step: int, decay: float) -> float:
    """The EMA's decay at `step`: short-sighted at first, so that the initial weights do not linger."""
    return min(decay, (1 + step) / (10 + step))


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
    ) -> None:
        training, method = spec.training, spec.method
        self.teacher, self.training, self.method = teacher, training, method
        self.conditions, self.pairs, self.regression_loss = conditions, pairs, regression_loss
        self.device = teacher.denoiser.schedule.sigmas.device
        self.dtype = next(teacher.denoiser.network.parameters()).dtype
        self.mu_real = guide(teacher, spec.teacher.guidance_scale)
        self.generator_network = _trainable_copy(teacher.denoiser.network)
        self.fake_score_network = _trainable_copy(teacher.denoiser.network)
        self.ema_network = copy.deepcopy(teacher.denoiser.network)
        timestep = (
            len(teacher.denoiser.schedule) - 1 if method.generator_timestep is None else method.generator_timestep
        )
        self.generator = OneStepGenerator(teacher.denoiser.with_network(self.generator_network), timestep)
        self.ema_generator = OneStepGenerator(teacher.denoiser.with_network(self.ema_network), timestep)
        self.mu_fake = teacher.denoiser.with_network(self.fake_score_network)

        self.generator_learning_rate = training.learning_rate
        self.fake_score_learning_rate = training.fake_score.learning_rate or training.learning_rate
        self.generator_optimizer = _optimizer(self.generator_network, training, training.betas)
        self.fake_score_optimizer = _optimizer(
            self.fake_score_network, training, training.fake_score.betas or training.betas
        )

        # A batch's samples are numbered globally; this rank works on its own part, in micro-batches.
        indices = local_slice(training.batch_size, rank, world_size)
        size = training.micro_batch_size or len(indices)
        self.micro_batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        self.local_batch = len(indices)
        self.step_count = 0

    def step(self, stop_requested: bool = False) -> StepReport:
        """One generator update and the fake score's updates that follow it.

        Args:
            stop_requested: whether this rank was told to stop; the report says whether any was.

        Raises:
            TrainingDivergedError: a loss or a gradient is not finite, or a loss is beyond `training.maxLoss`.
        """
        step, training = self.step_count, self.training
        factor = schedule_factor(step, training)
        timer = _Timer()

        losses, generator_norm, generated = self._update_generator(step, factor, float(stop_requested))
        stop = losses.pop("stop") > 0
        timer.lap("generator_update")

        fake_score_loss = 0.0
        updates = self.method.fake_score_updates
        for update in range(updates):
            batches = generated if update == 0 else self._fresh_images(step, update)
            loss, fake_score_norm = self._update_fake_score(step, update, factor, batches)
            fake_score_loss += loss / updates
        timer.lap("fake_score_updates")

        self.step_count += 1
        return StepReport(
            losses=losses | {"fake_score": fake_score_loss},
            gradient_norms={"generator": generator_norm, "fake_score": fake_score_norm},
            learning_rates={
                "generator": factor * self.generator_learning_rate,
                "fake_score": factor * self.fake_score_learning_rate,
            },
            seconds=timer.seconds,
            stop=stop,
        )

    def _update_generator(
        self, step: int, factor: float, stop: float
    ) -> tuple[dict[str, float], float, list[tuple[Tensor, dict[str, Tensor]]]]:
        """One update of the generator and its EMA; returns losses, gradient norm, and images with their conditions."""
        schedule = self.teacher.denoiser.schedule
        totals: dict[str, Tensor] = {}
        images: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.generator_optimizer.zero_grad()
        for indices in self.micro_batches:
            draws = Draws(self.training.seed, "generator update", step, indices)
            condition, noise = self._draw_inputs(draws)
            index = draws.integers(*middle_indices(len(schedule)))
            eps = self._normal(draws)

            # One call for both losses: a generator pass over twice the batch costs less than two passes.
            if self.pairs is not None:
                pair_noise, reference, pair_condition = self.pairs.at(draws.integers(0, len(self.pairs)))
                both = {k: torch.cat([v, pair_condition[k].to(self.device)]) for k, v in condition.items()}
                x, x_pairs = self.generator(torch.cat([noise, pair_noise.to(noise)]), both).chunk(2)
            else:
                x = self.generator(noise, condition)

            level = schedule.at(index.to(self.device))
            with torch.no_grad():
                x_t = add_noise(x, eps, level)
                mu_real, mu_fake = self.mu_real(x_t, level, condition), self.mu_fake(x_t, level, condition)
                gradient = distribution_matching_gradient(x, mu_real, mu_fake, level)
            losses = {"distribution_matching": distribution_matching_loss(x, gradient)}
            loss = losses["distribution_matching"]
            if self.pairs is not None:
                losses["regression"] = self.regression_loss(x_pairs, reference.to(x))
                loss = loss + self.regression_weight(step) * losses["regression"]
            share = len(indices) / self.local_batch
            (loss * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * share
            images.append((x.detach(), condition))

        parameters = list(self.generator_network.parameters())
        averaged = average_gradients(parameters, {**totals, "stop": stop})
        norm = self._clip(parameters, averaged, "generator", step)
        _apply(self.generator_optimizer, factor * self.generator_learning_rate)
        decay = ema_decay(step, self.training.ema_decay)
        torch._foreach_lerp_(list(self.ema_network.parameters()), [p.detach() for p in parameters], 1 - decay)
        return averaged, norm, images

    @torch.no_grad()
    def _fresh_images(self, step: int, update: int) -> Iterable[tuple[Tensor, dict[str, Tensor]]]:
        """The generator's images for a further fake-score update, made without gradients, and their conditions."""
        for indices in self.micro_batches:
            condition, noise = self._draw_inputs(Draws(self.training.seed, f"fresh images {update}", step, indices))
            yield self.generator(noise, condition), condition

    def _update_fake_score(
        self, step: int, update: int, factor: float, batches: Iterable[tuple[Tensor, dict[str, Tensor]]]
    ) -> tuple[float, float]:
        """One update of the fake score on generated images; returns its loss and gradient norm."""
        schedule = self.teacher.denoiser.schedule
        self.fake_score_optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for indices, (images, condition) in zip(self.micro_batches, batches, strict=True):
            draws = Draws(self.training.seed, f"fake score update {update}", step, indices)
            level = schedule.at(draws.integers(0, len(schedule)).to(self.device))
            eps = self._normal(draws)
            loss = denoising_loss(self.mu_fake, images, eps, level, condition)
            share = len(indices) / self.local_batch
            (loss * share).backward()
            total = total + loss.detach() * share
        parameters = list(self.fake_score_network.parameters())
        averaged = average_gradients(parameters, {"fake_score": total})
        norm = self._clip(parameters, averaged, "fake score", step)
        _apply(self.fake_score_optimizer, factor * self.fake_score_learning_rate)
        return averaged["fake_score"], norm

    def regression_weight(self, step: int) -> float:
        """The regression loss's weight at `step`, from `method.regression`."""
        regression = self.method.regression
        if regression is None:
            return 0.0
        if regression.weight_schedule == "constant":
            return regression.weight
        return regression.weight * 0.5 * (1 + math.cos(math.pi * step / self.training.generator_updates))

    def _draw_inputs(self, draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
        condition = to_device(self.conditions.draw(draws), self.device)
        return condition, self._normal(draws)

    def _normal(self, draws: Draws) -> Tensor:
        return draws.normal(self.teacher.sample_shape).to(self.device, self.dtype)

    def _clip(self, parameters: list[nn.Parameter], losses: Mapping[str, float], name: str, step: int) -> float:
        """Clips to `training.gradientClipNorm`; every rank sees the same averages and so decides alike."""
        limit = self.training.gradient_clip_norm
        norm = float(nn.utils.clip_grad_norm_(parameters, limit if limit is not None else math.inf))
        bad = {key: value for key, value in {**losses, "gradient norm": norm}.items() if not math.isfinite(value)}
        exploded = {key: value for key, value in losses.items() if value > self.training.max_loss}
        if bad or exploded:
            found = ", ".join(f"{key} = {value:.4g}" for key, value in (bad or exploded).items())
            raise TrainingDivergedError(
                f"step {step}: the {name}'s training diverged ({found}); the last checkpoint from before it is kept. "
                "Lower spec.training.learningRate or set spec.training.gradientClipNorm"
            )
        return norm

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, as nested dictionaries of tensors."""
        return {
            "generator": get_model_state_dict(self.generator_network),
            "fake_score": get_model_state_dict(self.fake_score_network),
            "ema": get_model_state_dict(self.ema_network),
            "generator_optimizer": get_optimizer_state_dict(self.generator_network, self.generator_optimizer),
            "fake_score_optimizer": get_optimizer_state_dict(self.fake_score_network, self.fake_score_optimizer),
        }

    def load_state(self, state: dict[str, Any], step: int) -> None:
        """Takes up `state`, as `state()` gave it after `step` steps."""
        set_model_state_dict(self.generator_network, state["generator"])
        set_model_state_dict(self.fake_score_network, state["fake_score"])
        set_model_state_dict(self.ema_network, state["ema"])
        set_optimizer_state_dict(self.generator_network, self.generator_optimizer, state["generator_optimizer"])
        set_optimizer_state_dict(self.fake_score_network, self.fake_score_optimizer, state["fake_score_optimizer"])
        self.step_count = step


def _trainable_copy(network: nn.Module) -> nn.Module:
    # In training mode nothing changes but dropout, which a distilled network has no use for: it stays off.
    return copy.deepcopy(network).requires_grad_(True)


def _optimizer(network: nn.Module, training: Training, betas: tuple[float, float]) -> torch.optim.AdamW:
    return torch.optim.AdamW(network.parameters(), betas=betas, weight_decay=training.weight_decay, fused=True)


def _apply(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
