"""The best generator so far, which is evaluated in the end and exported."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.distributed.collectives import broadcast_json
from dmd_trainer.runtime.storage import Storage

INDEX = "generator/best.json"


class BestGenerator:
    """Keeps the EMA weights with the lowest FID in storage.

    Every rank holds the same numbers; one writes. The weights come first, then `best.json` that names them, then the
    weights before them go: at any moment the file that is named is whole. What an earlier attempt kept still counts.

    Args:
        storage: the run's.
        writes: set on the rank that writes.
    """

    def __init__(self, storage: Storage, *, writes: bool = True) -> None:
        self._storage, self._writes = storage, writes
        index = json.loads(storage.read(INDEX)) if writes and storage.exists(INDEX) else {}
        index = broadcast_json(index)
        self.step: int | None = index.get("step")
        self.fid: float | None = index.get("fid")

    def offer(self, step: int, fid: float, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Takes what `weights` gives if its `fid` is the lowest so far; all ranks ask for it together."""
        if self.fid is not None and not fid < self.fid:
            return
        self.step, self.fid = step, fid
        taken = weights()
        if not self._writes:
            return
        key = f"generator/step-{step:06d}.safetensors"
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in taken.items()})
        self._storage.write(key, content)
        index = {"step": step, "fid": fid, "file": key, "sha256": hashlib.sha256(content).hexdigest()}
        self._storage.write(INDEX, json.dumps(index, indent=1).encode())
        for other in self._storage.list("generator/"):
            if other.endswith(".safetensors") and other != key:
                self._storage.delete(other)


def load_best(storage: Storage) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The index ("step", "fid", "sha256", "file") and the weights of the best generator in storage.

    Raises:
        BadInputError: there is none, or it is not what its hash says.
    """
    remedy = "run the distill stage again: it goes on from the last checkpoint"
    if not storage.exists(INDEX):
        raise BadInputError(f"{storage.uri_of(INDEX)}: missing; {remedy}")
    index: dict[str, Any] = json.loads(storage.read(INDEX))
    content = storage.read(index["file"]) if storage.exists(index["file"]) else b""
    if hashlib.sha256(content).hexdigest() != index["sha256"]:
        raise BadInputError(f"{storage.uri_of(index['file'])}: missing or damaged; {remedy}")
    return index, load(content)
