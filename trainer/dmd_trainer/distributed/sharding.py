"""How a network lies in memory: shards (FSDP2), recomputed activations, channels-last, compiled."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from dmd_api.spec import Training


def prepare(module: nn.Module, training: Training) -> None:
    """Activation checkpointing, channels-last and compilation, where the manifest asks for them."""
    enable: Any = getattr(module, "enable_gradient_checkpointing", None)
    if training.activation_checkpointing and enable is not None:
        enable()
    if training.channels_last:
        # Only convolutions' weights have the four dimensions that this is about.
        module.to(memory_format=torch.channels_last)
    if training.compile:
        module.compile()


def shard(module: nn.Module, training: Training, blocks: Sequence[nn.Module]) -> bool:
    """Shards a module's parameters over all ranks, block by block (FSDP2); whether it did.

    Weights stay float32 and the optimiser works on them; they are gathered and computed with in bfloat16 where the
    manifest says so, and gradients are averaged in float32.

    Args:
        module: what is sharded, in place.
        training: the manifest's.
        blocks: its parts that are gathered one at a time.
    """
    if training.sharding != "FSDP" or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    narrow = training.precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if narrow else None,
        reduce_dtype=torch.float32 if narrow else None,
        # A time of 999 would become 1000 in bfloat16.
        cast_forward_inputs=False,
    )
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    # By default the outermost stays gathered after its forward pass: an average that is changed in between would be
    # evaluated with weights of before.
    fully_shard(module, mp_policy=policy, reshard_after_forward=True)
    return True


def set_gradient_sync(module: nn.Module, synchronise: bool) -> None:
    """Whether the next backward pass averages gradients over the ranks: only a step's last micro-batch needs to."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(synchronise)
