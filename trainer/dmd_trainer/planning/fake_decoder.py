"""A decoder of latents on tensors without data: it decodes a batch's ends, and its memory is that of decoding all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def decode_ends(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decodes as the real step does, one by one with activations computed again, but runs the first and last alone.

    What lives grows from one image to the next: forwards by the images, backwards by their latents' gradients. So a
    peak is in the last one's forward or in the first one's backward pass, and the others need only make these.
    """
    first, *between, last = latents.split(1) if len(latents) > 1 else (None, latents)
    ends = [] if first is None else [checkpoint(decode, first, use_reentrant=False)]
    images = ends + [_Unpassed.apply(part, ends[0].shape) for part in between]
    return torch.cat([*images, checkpoint(decode, last, use_reentrant=False)])


class _Unpassed(torch.autograd.Function):
    """Stands for the decoder: makes the output and the input's gradient, and nothing in between."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = latents.shape
        return latents.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].new_empty(ctx.shape), None
