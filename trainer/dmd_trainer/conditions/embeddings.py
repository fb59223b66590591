"""Prompts as conditions: embedded once, by whoever needs them first, and shared through the storage."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dmd_trainer.conditions.base import Conditions, Drawn
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.runtime.storage import Storage

PROMPTS_PER_SHARD = 256
"""SD 1.5's embeddings of so many are 30 MB."""


class Encoder(Protocol):
    """A teacher's text encoders."""

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The condition of each prompt, [B, ...]."""

    def negative(self) -> dict[str, Tensor]:
        """The condition that guidance leads away from, [1, ...]."""


class PromptEmbeddings:
    """The embeddings of a list of prompts, in shards; whoever first needs one makes it and shares it.

    A shard is a function of the prompts and the encoder alone, so it does no harm when two make the same one.

    Args:
        prompts: all of them.
        digest: of the teacher, whose text encoders these are.
        storage: storage that all runs share; shards are below `cache/prompts-.../`, in half precision.
        folder: for local copies.
        encoder: loads the text encoder, once it is needed.
    """

    def __init__(
        self, prompts: list[str], digest: str, storage: Storage, folder: Path, encoder: Callable[[], Encoder]
    ) -> None:
        self.prompts = prompts
        self.identity = hashlib.sha256(json.dumps([digest, prompts]).encode()).hexdigest()[:16]
        self._storage, self._folder, self._make_encoder = storage, folder / f"prompts-{self.identity}", encoder
        self._shards: dict[str, Any] = {}  # memory-mapped: rows are read on demand

    @cached_property
    def _encoder(self) -> Encoder:
        return self._make_encoder()

    def at(self, indices: Tensor) -> dict[str, Tensor]:
        """The conditions of the prompts at indices [B]: each [B, ...], half precision, on the CPU."""
        rows: dict[str, list[Tensor]] = {}
        for index in indices.tolist():
            shard, row = self._shard(index // PROMPTS_PER_SHARD), index % PROMPTS_PER_SHARD
            for key in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                rows.setdefault(key, []).append(shard.get_slice(key)[row : row + 1])
        return {key: torch.cat(parts) for key, parts in rows.items()}

    @cached_property
    def negative(self) -> dict[str, Tensor]:
        """The condition that guidance leads away from, [1, ...]."""
        file = self._opened("negative", lambda: self._encoder.negative())
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def _shard(self, number: int) -> Any:
        start = number * PROMPTS_PER_SHARD
        part = self.prompts[start : start + PROMPTS_PER_SHARD]
        return self._opened(f"shard-{number:05d}", lambda: self._encoder.encode(part))

    def _opened(self, name: str, make: Callable[[], dict[str, Tensor]]) -> Any:
        """A safetensors file: the local copy, else downloaded, else made and shared."""
        if name in self._shards:
            return self._shards[name]
        key, path = f"cache/prompts-{self.identity}/{name}.safetensors", self._folder / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._storage.exists(key):
                content = save({k: v.to("cpu", torch.float16).contiguous() for k, v in make().items()})
                self._storage.write(key, content)
            self._storage.download(key, path)
        self._shards[name] = safe_open(path, framework="pt")
        return self._shards[name]


@dataclass(frozen=True)
class PromptConditions(Conditions):
    """Prompts as conditions.

    Attributes:
        embeddings: of all prompts.
        added: further arguments of the network, each [1, ...]: SDXL's `time_ids`.
        one_by_one: sample i has prompt i, as in an evaluation, instead of one drawn at random.
    """

    embeddings: PromptEmbeddings = field(kw_only=True)
    added: Condition = field(kw_only=True, default_factory=dict)
    one_by_one: bool = field(kw_only=True, default=False)

    @property
    def identity(self) -> str:
        return f"prompts-{self.embeddings.identity}"

    @property
    def prompts(self) -> list[str]:
        """All prompts."""
        return self.embeddings.prompts

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        if self.one_by_one:
            return {"prompt": torch.tensor(random.indices) % len(self.prompts)}
        return {"prompt": random.integers(0, len(self.prompts))}

    def in_turn(self, count: int) -> dict[str, Tensor]:
        """Spread over all prompts: neighbours in a list are often alike."""
        return {"prompt": torch.arange(count) * max(1, len(self.prompts) // count) % len(self.prompts)}

    def embed(self, drawn: Drawn, device: torch.device) -> dict[str, Tensor]:
        return self._with_added(self.embeddings.at(drawn["prompt"]), device)

    @property
    def negative(self) -> Condition:
        return self._with_added(self.embeddings.negative, torch.device("cpu"))

    def _with_added(self, condition: Condition, device: torch.device) -> dict[str, Tensor]:
        count = len(next(iter(condition.values())))
        added = {key: value.expand(count, *value.shape[1:]) for key, value in self.added.items()}
        return {key: value.to(device) for key, value in {**condition, **added}.items()}
