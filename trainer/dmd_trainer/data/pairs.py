"""ODE pairs: noise, condition and the teacher's solution of it, in shards (DMD, arXiv 2311.18828, section 4.2).

A shard's bytes depend on the manifest and the teacher alone: its noise is keyed by the pairs' global indices and its
solver batches start at its first pair, so any number of workers make the same shards on like hardware.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.solvers import Solver
from dmd_trainer.runtime.storage import Storage

PAIRS_PER_SHARD = 512
SOLVER_BATCH = 256


def shard_key(shard: int) -> str:
    """A shard's key in the run's storage; its hash is at the same key with `.sha256`."""
    return f"pairs/shard-{shard:05d}.safetensors"


def shard_indices(shard: int, pairs: int) -> range:
    """The global indices of a shard's pairs."""
    return range(shard * PAIRS_PER_SHARD, min((shard + 1) * PAIRS_PER_SHARD, pairs))


def shard_count(pairs: int) -> int:
    """How many shards hold `pairs` pairs."""
    return -(-pairs // PAIRS_PER_SHARD)


def shard_is_intact(storage: Storage, shard: int) -> bool:
    """Whether a shard in storage matches its hash. One whose hash is missing was never finished."""
    key = shard_key(shard)
    if not (storage.exists(key) and storage.exists(f"{key}.sha256")):
        return False
    return _hash(storage.read(key)) == storage.read(f"{key}.sha256").decode().split()[0]


def make_shard(
    solver: Solver,
    conditions: Conditions,
    sample_shape: Sequence[int],
    indices: range,
    seed: int,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda count: None,
) -> bytes:
    """One shard as safetensors: `noise` and `images` [N, C, H, W], float32, and the drawn conditions' tensors [N].

    Args:
        solver: the teacher's deterministic sampler.
        conditions: draws the pairs' conditions.
        sample_shape: (C, H, W).
        indices: the global indices of the shard's pairs.
        seed: the run's.
        device: where the solver runs.
        on_batch: called after each solver batch with the number of its pairs; may raise to stop.
    """
    noises: list[Tensor] = []
    images: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {}
    for start in range(indices.start, indices.stop, SOLVER_BATCH):
        random = KeyedRandom(seed, "pairs", 0, range(start, min(start + SOLVER_BATCH, indices.stop)))
        drawn = conditions.draw(random)
        noise = random.normal(sample_shape)
        noises.append(noise)
        images.append(solver(noise.to(device), conditions.embed(drawn, device)).cpu())
        for key, value in drawn.items():
            labels.setdefault(key, []).append(value)
        on_batch(len(noise))
    tensors = {"noise": torch.cat(noises), "images": torch.cat(images)}
    return save(tensors | {key: torch.cat(values) for key, values in labels.items()})


def write_shard(storage: Storage, shard: int, content: bytes) -> None:
    """Writes a shard, then its hash: the hash's presence says that the shard is finished."""
    key = shard_key(shard)
    storage.write(key, content)
    storage.write(f"{key}.sha256", f"{_hash(content)}  {key.rpartition('/')[2]}\n".encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shard_files(count: int, folder: Path) -> list[Path]:
    """The local copies of all shards of `count` pairs, in order."""
    return [folder / Path(shard_key(shard)).name for shard in range(shard_count(count))]


def download_shards(storage: Storage, count: int, folder: Path) -> list[int]:
    """Copies the shards of `count` pairs to `shard_files`, checking their hashes; intact copies are kept.

    Returns:
        The shards that are missing or do not match their hashes.
    """
    damaged = []
    for shard, path in enumerate(shard_files(count, folder)):
        key = shard_key(shard)
        if not (storage.exists(key) and storage.exists(f"{key}.sha256")):
            damaged.append(shard)
            continue
        expected = storage.read(f"{key}.sha256").decode().split()[0]
        if not (path.exists() and _hash(path.read_bytes()) == expected):
            storage.download(key, path)
            if _hash(path.read_bytes()) != expected:
                damaged.append(shard)
    return damaged


class Pairs:
    """The finished pairs, read row by row from local copies of their shards.

    Args:
        files: the shards in their order.
        count: how many pairs they hold.
    """

    def __init__(self, files: Sequence[Path], count: int) -> None:
        self.count = count
        self._shards = [safe_open(file, framework="pt") for file in files]  # memory-mapped: rows are read on demand

    def __len__(self) -> int:
        return self.count

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The pairs at global indices [B]: (noise [B, C, H, W], images [B, C, H, W], drawn conditions)."""
        rows: dict[str, list[Tensor]] = {}
        for index in indices.tolist():
            shard, row = self._shards[index // PAIRS_PER_SHARD], index % PAIRS_PER_SHARD
            for key in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                rows.setdefault(key, []).append(shard.get_slice(key)[row : row + 1])
        columns = {key: torch.cat(values) for key, values in rows.items()}
        return columns.pop("noise"), columns.pop("images"), columns
