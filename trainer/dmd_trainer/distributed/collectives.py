"""What the ranks of a stage agree on, and how their gradients are averaged."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: longer than any download or upload that one of them does alone."""


class Ranks(NamedTuple):
    """A process among those that share a batch.

    Attributes:
        rank: its number.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1


ALONE = Ranks()


def start_process_group(device: torch.device) -> None:
    """Joins the process group that the launcher's environment describes."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)


def rank_and_world_size() -> Ranks:
    """This process's rank and how many there are; (0, 1) without a process group."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def local_rank() -> int:
    """This process's rank on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_json(value: T) -> T:
    """Rank 0's `value`, on every rank: JSON's values, since a pickle from another machine would be run here."""
    if not dist.is_initialized():
        return value
    content = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    size = torch.tensor(len(content))
    dist.broadcast(size, src=0)
    data = _bytes(content, int(size))
    dist.broadcast(data, src=0)
    return cast("T", json.loads(data.numpy().tobytes()))


def gather_json(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's `value`, on every rank, by their numbers: JSON's values.

    Args:
        value: this rank's.
        group: the ranks. Default: all of them.
    """
    if not dist.is_initialized():
        return [value]
    content = json.dumps(value).encode()
    sizes = [int(size) for size in gather(torch.tensor(len(content)), group)]
    parts = gather(_bytes(content, max(sizes)), group)
    return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Every rank's tensor, on every rank, by their numbers; all are of one shape and dtype, on the CPU."""
    if not dist.is_initialized():
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def _bytes(content: bytes, size: int) -> Tensor:
    """`content` as a tensor of `size` bytes, zeros at its end."""
    return torch.frombuffer(bytearray(content.ljust(size, b"\0")), dtype=torch.uint8)


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank: the same answer on all of them."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def local_slice(total: int, ranks: Ranks) -> range:
    """The global sample indices that are a rank's: equal, contiguous parts of range(total)."""
    share = total // ranks.world_size
    return range(ranks.rank * share, (ranks.rank + 1) * share)


@torch.no_grad()
def average_gradients(
    parameters: Iterable[nn.Parameter], scalars: Mapping[str, Tensor], flag: bool = False
) -> tuple[dict[str, float], bool]:
    """Averages gradients over the ranks, and with the same collective the scalars that a step reports.

    One flat buffer, always in the same order: the sum does not depend on which gradient was ready first, so that a
    resumed run adds the same numbers in the same order (DistributedDataParallel regroups its buckets after its first
    step, and with more than two ranks that changes the last bits).

    Args:
        parameters: those whose gradients are averaged in place; ones without a gradient are skipped.
        scalars: named numbers, averaged too; at least one.
        flag: set on some ranks and not on others.

    Returns:
        The averaged scalars, and whether `flag` was set on any rank.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    reference = gradients[0] if gradients else next(iter(scalars.values()))
    extra = torch.stack([*(value.to(reference) for value in scalars.values()), torch.tensor(float(flag)).to(reference)])
    _, world_size = rank_and_world_size()
    if world_size > 1:
        flat = torch.cat([*(g.reshape(-1) for g in gradients), extra])
        dist.all_reduce(flat)
        flat /= world_size
        pieces = flat.split([*(g.numel() for g in gradients), len(extra)])
        if gradients:  # none where shards are averaged by the backward pass: only scalars are then
            torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces[:-1], gradients, strict=True)])
        extra = pieces[-1]
    *averages, flagged = extra.tolist()
    return dict(zip(scalars, averages, strict=True)), flagged > 0
