"""Randomness as a function of its key, so that there is no generator state to save.

Every draw depends on (seed, stream, step, global sample index) alone: a resumed run, another number of processes or
another way of sharding sees the same numbers, on whatever device it trains. The generator is Philox4x64-10 (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose 128-bit key holds (seed, stream) and whose 256-bit
counter starts at (0, 0, step, index); draws are made on the CPU and moved by the caller.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def _generator(seed: int, stream: str, step: int, index: int) -> np.random.Generator:
    # A stream's name becomes a number by CRC-32: stable across processes and versions, unlike hash().
    key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.array([0, 0, step, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, stream: str, step: int, indices: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal draws, one row a sample.

    Args:
        seed: the run's seed, at least 0.
        stream: what the draw is for; two names never share numbers.
        step: the generator update (or another counter) that the draw belongs to.
        indices: global sample indices [B].
        shape: the shape of one sample, e.g. (C, H, W).

    Returns:
        [B, *shape], float32, on the CPU.
    """
    rows = [_generator(seed, stream, step, i).standard_normal(tuple(shape), dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape))


def integers(seed: int, stream: str, step: int, indices: Iterable[int], low: int, high: int) -> Tensor:
    """Uniform integers in [low, high), one a sample: [B], int64, on the CPU. See `normal` for the arguments."""
    rows = [int(_generator(seed, stream, step, i).integers(low, high)) for i in indices]
    return torch.tensor(rows, dtype=torch.int64)
