"""A network that is trained: its optimiser, where its shards are, and one update of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from dmd_api.errors import TrainingDivergedError
from dmd_api.spec import Training
from dmd_trainer.distributed.collectives import average_gradients
from dmd_trainer.distributed.sharding import prepare, shard


class Update(NamedTuple):
    """What all ranks know of an update.

    Attributes:
        losses: averaged over the ranks.
        gradient_norm: before clipping.
        stop: some rank was told to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    stop: bool


class TrainedNetwork:
    """The generator, or the fake score.

    Args:
        name: for messages.
        module: its parameters that require gradients are trained; the same on every rank.
        training: the manifest's.
        learning_rate: its own.
        betas: AdamW's.
        blocks: its parts that are gathered one at a time where it is sharded.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        training: Training,
        learning_rate: float,
        betas: tuple[float, float],
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        self.name, self.module, self.training, self.learning_rate = name, module, training, learning_rate
        prepare(module, training)
        self.sharded = shard(module, training, blocks)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, betas=betas, weight_decay=training.weight_decay, fused=not self.sharded
        )

    def requires_grad(self, wanted: bool) -> None:
        """Whether backward passes reach the weights; shards, which hold their gradients elsewhere, stay as they are."""
        if not self.sharded:
            for parameter in self.parameters:
                parameter.requires_grad_(wanted)

    def zero_grad(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad()

    def update(self, factor: float, losses: Mapping[str, Tensor], step: int, *, stop: bool = False) -> Update:
        """One step of the optimiser, from gradients that `backward` left.

        Args:
            factor: of the learning rate.
            losses: what is averaged over the ranks with the gradients; `training.maxLoss` bounds them.
            step: for messages.
            stop: whether this rank was told to stop.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite, or a loss is too large; nothing was updated.
        """
        # Sharded gradients are averaged already, by the backward pass.
        averaged, any_stop = average_gradients([] if self.sharded else self.parameters, losses, stop)
        norm = self._clip(averaged, step)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.learning_rate
        self.optimizer.step()
        return Update(averaged, norm, any_stop)

    def _clip(self, losses: Mapping[str, float], step: int) -> float:
        """Clips to `training.gradientClipNorm`; every rank sees the same averages and so decides alike."""
        limit = self.training.gradient_clip_norm
        total = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        bad = {key: value for key, value in {**losses, "gradient norm": norm}.items() if not math.isfinite(value)}
        exploded = {key: value for key, value in losses.items() if value > self.training.max_loss}
        if bad or exploded:
            found = ", ".join(f"{key} = {value:.4g}" for key, value in (bad or exploded).items())
            raise TrainingDivergedError(
                f"step {step}: the {self.name}'s training diverged ({found}); the last checkpoint from before it is "
                "kept. Lower spec.training.learningRate or set spec.training.gradientClipNorm"
            )
        if limit is not None and norm > limit:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, total)
        return norm

    def state(self) -> dict[str, Any]:
        """Weights and the optimiser's state, for a checkpoint."""
        return {
            "weights": get_model_state_dict(self.module),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        set_model_state_dict(self.module, state["weights"])
        set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                # Fused AdamW goes through memory as it lies: moments of another layout would be another weight's.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)


class Ema:
    """The moving average of a network's weights.

    Args:
        module: a copy of the network, which becomes the average.
        training: the manifest's.
        blocks: its parts that are gathered one at a time where it is sharded.
    """

    def __init__(self, module: nn.Module, training: Training, blocks: Sequence[nn.Module] = ()) -> None:
        self.module, self.decay = module.requires_grad_(False), training.ema_decay
        prepare(module, training)
        shard(module, training, blocks)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves towards `network`; short-sighted at first, so that the initial weights do not linger."""
        decay = ema_decay(step, self.decay)
        # Frozen weights, beside low-rank adapters, are in both already.
        trained = [
            (a, p) for a, p in zip(self.module.parameters(), network.parameters(), strict=True) if p.requires_grad
        ]
        averages, current = ([_local(p) for p in column] for column in zip(*trained, strict=True))
        torch._foreach_lerp_(averages, current, 1 - decay)


def ema_decay(step: int, decay: float) -> float:
    """The EMA's decay at `step`: short-sighted at first, so that the initial weights do not linger."""
    return min(decay, (1 + step) / (10 + step))


def _local(parameter: nn.Parameter) -> Tensor:
    """A parameter's values, or this rank's shard of them."""
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All of a module's weights on the CPU, its shards gathered: called by every rank, empty but on the first."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        gathered: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        return dict(gathered)
    if dist.is_initialized() and dist.get_rank() != 0:
        return {}
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
