"""`python -m benchmarks.gpu.shards DEVICE RESULT`: one process that compares sharded gradients."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmarks.gpu.digits import EXAMPLE, URI
from dmd_api.loading import load_manifest
from dmd_trainer.distributed.collectives import local_slice, rank_and_world_size, start_process_group
from dmd_trainer.distributed.sharding import shard
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime.fetch import local_path

BATCH = 8


def main() -> None:
    """Gradients of the digits teacher's network, whole and sharded."""
    device, result = torch.device(sys.argv[1]), Path(sys.argv[2])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(0)
    start_process_group(device)
    ranks = rank_and_world_size()
    teacher = load_teacher(local_path(URI, Path()), device=device)
    network: Any = teacher.denoiser.network
    blocks = teacher.family.blocks(network)
    network.requires_grad_(True)
    whole = copy.deepcopy(network)
    training = load_manifest(EXAMPLE).spec.training.model_copy(update={"sharding": "FSDP"})
    if not shard(network, training, blocks):  # a single process does not shard by itself
        for block in blocks:
            fully_shard(block)
        fully_shard(network, reshard_after_forward=True)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 1, 8, 8, generator=generator).to(device)
    _backward(whole, x, range(BATCH))
    _backward(network, x, local_slice(BATCH, ranks))
    squares = total = 0.0
    sharded = 0
    for theirs, ours in zip(whole.parameters(), network.parameters(), strict=True):
        if theirs.grad is None:
            continue
        gradient: Any = ours.grad
        sharded += isinstance(gradient, DTensor)
        gathered = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        squares += float((gathered - theirs.grad).square().sum())
        total += float(theirs.grad.square().sum())
    if ranks.rank == 0:
        found = {
            "difference": (squares / total) ** 0.5,
            "shardedTensors": sharded,
            "backend": dist.get_backend(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if device.type == "cuda" else None,
        }
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, result)
    dist.barrier()
    dist.destroy_process_group()


def _backward(network: Any, x: torch.Tensor, own: range) -> None:
    labels = torch.arange(BATCH, device=x.device)[own.start : own.stop]
    part = x[own.start : own.stop]
    time = torch.linspace(-1, 1, BATCH, device=x.device)[own.start : own.stop]
    output = network(part, timestep=time, class_labels=labels, return_dict=False)[0]
    output.square().mean().backward()


if __name__ == "__main__":
    main()
