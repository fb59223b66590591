"""The optimisation of the methods without a fake score; its settings are those of examples/distill-digits.yaml."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmd_trainer.diffusion.denoiser import Denoiser

WARMUP, CLIP, EMA_DECAY, WEIGHT_DECAY = 20, 10.0, 0.998, 0.01


def as_in_manifest(updates: int, batch: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """The same optimisation for the methods that have a fake score: fields of the manifest's `training`."""
    return {
        "generator_updates": updates,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "learning_rate_schedule": "cosine",
        "warmup_steps": WARMUP,
        "gradient_clip_norm": CLIP,
        "ema_decay": EMA_DECAY,
        "seed": seed,
    }


def train(start: Denoiser, loss: Callable[[Denoiser], Tensor], updates: int, learning_rate: float) -> Denoiser:
    """Trains a copy of `start` with AdamW, a short warm-up and a cosine down to 0.

    Args:
        start: whose weights are the first ones.
        loss: of the student, drawing its own batch: a scalar.
        updates: how many.
        learning_rate: at the top.

    Returns:
        The student's moving average.
    """
    student = start.with_network(copy.deepcopy(start.network).requires_grad_(True))
    average = copy.deepcopy(start.network).requires_grad_(False)
    parameters = list(student.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    for update in range(updates):
        optimizer.zero_grad()
        loss(student).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        factor = min(1, (update + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * update / updates))
        for group in optimizer.param_groups:
            group["lr"] = factor * learning_rate
        optimizer.step()
        # Short-sighted at first, so that the teacher's weights do not linger.
        follow(average, student.network, min(EMA_DECAY, (1 + update) / (10 + update)))
    return start.with_network(average)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) network."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
