"""Randomness as a function of its key, so that there is no generator state to save.

Every draw depends on (seed, stream, step, global sample index) alone: a resumed run, another number of processes or
another way of sharding sees the same numbers, on whatever device it trains. The generator is Philox4x64-10 (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose 128-bit key holds (seed, stream) and whose 256-bit
counter starts at (0, 0, step, index); numbers are drawn on the CPU and moved by the caller.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class KeyedRandom:
    """The random numbers of a batch: one generator a sample, each call drawing the next numbers of every sample.

    Args:
        seed: the run's seed, at least 0.
        stream: what the draws are for; two names never share numbers.
        step: the generator update (or another counter) that the draws belong to.
        indices: global sample indices [B].
    """

    def __init__(self, seed: int, stream: str, step: int, indices: Iterable[int]) -> None:
        # A stream's name becomes a number by CRC-32: stable across processes and versions, unlike hash().
        self.indices = list(indices)
        key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
        self._generators = [
            np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, step, index], dtype=np.uint64)))
            for index in self.indices
        ]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [B, *shape], float32, on the CPU."""
        rows = np.empty((len(self), *shape), dtype=np.float32)
        for row, generator in zip(rows, self._generators, strict=True):
            generator.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(rows)

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform integers in [low, high): [B], int64, on the CPU."""
        return torch.tensor([int(g.integers(low, high)) for g in self._generators], dtype=torch.int64)


def further_noise(noise: Tensor, stream: str) -> Tensor:
    """More standard normal noise [B, C, H, W] as a function of each sample's first noise [B, C, H, W].

    Generators of several steps add noise between them: made from the first, a sampler still is a function of its
    noise and condition alone, whatever batch a sample is in.
    """
    rows = []
    for row in noise.detach().float().cpu():
        key = np.array([zlib.crc32(row.numpy().tobytes()), zlib.crc32(stream.encode())], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        rows.append(torch.from_numpy(generator.standard_normal(tuple(row.shape), dtype=np.float32)))
    return torch.stack(rows).to(noise)
