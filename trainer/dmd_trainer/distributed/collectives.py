"""What the ranks of a stage agree on, and how their gradients are averaged."""

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: longer than any download or upload that one of them does alone."""


def start_process_group(device: torch.device) -> None:
    """Joins the process group that the launcher's environment describes."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def local_rank() -> int:
    """This process's rank on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: T) -> T:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank: the same answer on all of them."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def local_slice(total: int, rank: int, world_size: int) -> range:
    """The global sample indices that are `rank`'s: equal, contiguous parts of range(total)."""
    share = total // world_size
    return range(rank * share, (rank + 1) * share)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Averages gradients over the ranks, and with the same collective whatever scalars a step reports.

    One flat buffer, always in the same order: the sum does not depend on which gradient was ready first, so that a
    resumed run adds the same numbers in the same order (DistributedDataParallel regroups its buckets after its first
    step, and with more than two ranks that changes the last bits).

    Args:
        parameters: those whose gradients are averaged in place; ones without a gradient are passed over.
        scalars: named numbers, averaged too.

    Returns:
        The averaged scalars.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    names = list(scalars)
    given = next((value for value in scalars.values() if isinstance(value, Tensor)), torch.zeros(()))
    reference = gradients[0] if gradients else given
    extra = torch.stack([torch.as_tensor(scalars[n]).to(reference) for n in names]) if names else reference.new_empty(0)
    _, world_size = rank_and_world_size()
    if world_size > 1:
        flat = torch.cat([*(g.reshape(-1) for g in gradients), extra])
        dist.all_reduce(flat)
        flat /= world_size
        pieces = flat.split([g.numel() for g in gradients] + [len(names)])
        if gradients:  # none where shards are averaged by the backward pass: only scalars are then
            torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces[:-1], gradients, strict=True)])
        extra = pieces[-1]
    return dict(zip(names, extra.tolist(), strict=True))
