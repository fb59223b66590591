"""One interface for every teacher: x0 = D(x_t, level, condition).

Whatever a network predicts (eps, v, x0, EDM's F, a flow's velocity), its x0 prediction is
D(x_t) = c_skip x_t + c_out F(c_in x_t, time), and only the three scalings differ. They live here and nowhere else,
in float32 or wider; the network alone may run in bfloat16.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule, per_sample

Condition = Mapping[str, Tensor]
"""The network's keyword arguments beside sample and time, each [B, ...], by diffusers' names.

{} or {"class_labels": [B]} for pixels; `encoder_hidden_states` [B, L, D] for text, with SDXL's `text_embeds` [B, D] and
`time_ids` [B, 6], or SD3's `pooled_projections` [B, D].
"""

X0Prediction = Callable[[Tensor, NoiseLevel, Condition], Tensor]
"""(x_t [B, C, H, W], level [B], condition) -> x0 [B, C, H, W]: a `Denoiser`, or a `Guided` one."""

ADDED_CONDITIONS = ("text_embeds", "time_ids")
"""What diffusers takes in a dictionary of its own, `added_cond_kwargs`."""


class Scalings(NamedTuple):
    """The scalings of D(x_t) = skip x_t + out F(into x_t): each [B], float64."""

    skip: Tensor
    out: Tensor
    into: Tensor


def scalings(prediction: Prediction, level: NoiseLevel, sigma_data: float | None = None) -> Scalings:
    """The scalings that turn a network's output into an x0 prediction.

    eps: x0 = (x_t - sigma eps) / alpha (DDPM, arXiv 2006.11239, eq. 15); v = alpha eps - sigma x0 (arXiv 2202.00512,
    appendix D); EDM: arXiv 2206.00364, table 1; flow: v = eps - x0 (arXiv 2403.03206, section 2).
    """
    alpha, sigma = level.alpha, level.sigma
    one = torch.ones_like(sigma)
    match prediction:
        case Prediction.EPSILON:
            return Scalings(1 / alpha, -sigma / alpha, one)
        case Prediction.V:
            return Scalings(alpha, -sigma, one)
        case Prediction.SAMPLE:
            return Scalings(0 * one, one, one)
        case Prediction.FLOW:
            return Scalings(one, -sigma, one)
        case Prediction.EDM:
            assert sigma_data is not None, "an EDM network's schedule carries sigma_data"
            variance = sigma**2 + sigma_data**2
            return Scalings(sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), 1 / variance.sqrt())


@dataclass(frozen=True)
class Denoiser:
    """A network behind its preconditioning.

    Attributes:
        network: a diffusers model, called as network(sample, timestep=..., **condition, return_dict=False)[0].
        schedule: the teacher's noise levels.
        prediction: what the network's output means.
        autocast: the dtype that the network alone runs in, e.g. torch.bfloat16; None leaves it as it is.
    """

    network: nn.Module
    schedule: Schedule
    prediction: Prediction
    autocast: torch.dtype | None = None

    def __call__(self, x_t: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        """The x0 prediction.

        Args:
            x_t: noised samples [B, C, H, W], float32 or wider.
            level: their noise levels [B].
            condition: the network's other arguments, each [B, ...].

        Returns:
            [B, C, H, W], in the dtype of `x_t`.
        """
        (output,) = self.call_network(x_t, level, condition)
        return self.x0(x_t, level, output)

    def x0(self, x_t: Tensor, level: NoiseLevel, output: Tensor) -> Tensor:
        """The x0 prediction [B, C, H, W] that the network's own output [B, C, H, W] stands for."""
        skip, out, _ = (per_sample(s, x_t) for s in self.scalings(level))
        return skip * x_t + out * output.to(x_t.dtype)

    def call_network(self, x_t: Tensor, level: NoiseLevel, condition: Condition, **options: Any) -> tuple[Tensor, ...]:
        """What the network itself says: F(c_in x_t, time), and what else `options`, which are passed on, ask it for."""
        into = per_sample(self.scalings(level).into, x_t)
        # Autocast knows no meta device, where only shapes are computed.
        kind = "cpu" if x_t.is_meta else x_t.device.type
        with torch.autocast(kind, dtype=self.autocast, enabled=self.autocast is not None):
            time = level.time.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32))
            arguments = _arguments(condition, x_t)
            outputs: tuple[Tensor, ...] = self.network(
                into * x_t, timestep=time, **arguments, return_dict=False, **options
            )
        return outputs

    def scalings(self, level: NoiseLevel) -> Scalings:
        """This network's scalings at `level`."""
        return scalings(self.prediction, level, self.schedule.sigma_data)

    def with_network(self, network: nn.Module, autocast: torch.dtype | None = None) -> Self:
        """The same preconditioning around another network (a trainable copy, its EMA), which runs in `autocast`."""
        return replace(self, network=network, autocast=autocast)


def _arguments(condition: Condition, like: Tensor) -> dict[str, Any]:
    """The condition as diffusers takes it; embeddings, which are kept in half precision, in the samples' dtype."""
    arguments: dict[str, Any] = {k: v.to(like.dtype) if v.is_floating_point() else v for k, v in condition.items()}
    added = {key: arguments.pop(key) for key in ADDED_CONDITIONS if key in arguments}
    return {**arguments, "added_cond_kwargs": added} if added else arguments


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance around a denoiser, both conditions in one batch (arXiv 2207.12598, eq. 6).

    x0 = D(negative) + scale (D(condition) - D(negative)); for one x_t this is the same in x0 as in eps.

    Attributes:
        denoiser: what is guided.
        scale: 1 leaves guidance, and its second half of the batch, out.
        negative: the condition [1, ...] that is led away from; needed where scale is not 1.
    """

    denoiser: Denoiser
    scale: float = 1.0
    negative: Condition | None = None

    def __call__(self, x_t: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        """The guided x0 prediction; arguments and result as `Denoiser.__call__`."""
        if self.scale == 1.0 or self.negative is None:
            return self.denoiser(x_t, level, condition)
        return self.both(x_t, level, condition)[1]

    def both(self, x_t: Tensor, level: NoiseLevel, condition: Condition) -> tuple[Tensor, Tensor]:
        """The x0 predictions under the condition alone and guided, from one call; arguments as `Denoiser.__call__`."""
        assert self.negative is not None, "the manifest's own rules ask for guidance"
        batch = len(x_t)
        both = {
            key: torch.cat([value, self.negative[key].to(value).expand_as(value)]) for key, value in condition.items()
        }
        positive, negative = self.denoiser(torch.cat([x_t, x_t]), level.followed_by(level), both).split(batch)
        return positive, negative + self.scale * (positive - negative)
