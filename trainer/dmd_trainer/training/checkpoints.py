"""Checkpoints: written in the background, complete only when a manifest with hashes is in place.

A checkpoint is a folder `checkpoints/step-000400-attempt-2/` in the run's storage: what torch.distributed.checkpoint
wrote (each rank its own files) and, last of all, `manifest.json` with the SHA-256 of every file. A folder without a
manifest was never finished; one whose files are not as its manifest says is named and skipped. The attempt's number
in the path fences attempts: one that was thought dead cannot write into its successor's checkpoints.
"""

import hashlib
import json
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from dmd_api.errors import BadInputError
from dmd_trainer.distributed.collectives import (
    any_rank,
    barrier,
    broadcast_json,
    gather_json,
    local_rank,
    rank_and_world_size,
)
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.training.checkpoint_reader import INDEX, CheckpointPlanner, CheckpointReader, read_index

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"checkpoints/(step-(\d{1,12})-attempt-(\d{1,12}))/([^/]+)")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's place in the order of all: later steps win, then later attempts."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:06d}-attempt-{self.attempt}"


class Checkpointer:
    """Saves and loads the state of a distillation, together with all ranks.

    Args:
        context: the stage's: its storage, a local folder that the ranks of a node share, the number of the attempt, and
            how many complete checkpoints stay (`training.keepCheckpoints`).
    """

    def __init__(self, context: StageContext) -> None:
        self._storage = context.storage
        self._scratch = context.scratch / "checkpoints"
        self._attempt = context.attempt
        self._keep = context.manifest.spec.training.keep_checkpoints
        self._progress = context.progress
        self._pending: Future[None] | None = None
        self.newest_step: int | None = None
        """The step of the newest checkpoint that is known to be whole."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._rank, _ = rank_and_world_size()
        # What the background writes is agreed on in a group of its own: its collectives must not mix with training's.
        self._group: dist.ProcessGroup | None = _own_group()

    def save(self, state: dict[str, Any], step: int, extra: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits for the one before, if that is still under way.

        Args:
            state: nested dictionaries of tensors; copied before this returns, so training may go on at once.
            step: generator updates done.
            extra: JSON values that are kept in the manifest.

        Raises:
            DMDError: the checkpoint before could not be written.
        """
        self.wait()
        name = CheckpointName(step, self._attempt)
        folder = self._scratch / str(name)
        written = async_save(
            state,
            storage_writer=FileSystemWriter(folder),
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(written, Future)
        self._pending = self._thread.submit(self._finish, name, folder, written, extra)

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
            DMDError: the last checkpoint could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with nullcontext() if pending.done() else self._progress.doing("uploading a checkpoint"):
                pending.result()

    def close(self) -> None:
        """Waits, and ends the background thread."""
        self.wait()
        self._thread.shutdown()

    def _finish(self, name: CheckpointName, folder: Path, written: Future[Any], extra: dict[str, Any]) -> None:
        written.result()
        own = [folder / INDEX] if self._rank == 0 else []
        own += sorted(folder.glob(f"__{self._rank}_*"))
        hashes = {}
        for path in own:
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            self._storage.upload(path, f"checkpoints/{name}/{path.name}")
        gathered = gather_json(hashes, self._group)
        if self._rank == 0:
            files = {file: digest for part in gathered for file, digest in part.items()}
            content = {"step": name.step, "attempt": name.attempt, "files": files, "extra": extra}
            self._storage.write(f"checkpoints/{name}/{MANIFEST}", json.dumps(content, indent=1).encode())
            self.newest_step = name.step
            self._prune(name)
        if self._group is not None:
            dist.barrier(group=self._group)
        if local_rank() == 0:
            shutil.rmtree(folder)

    def _prune(self, newest: CheckpointName) -> None:
        """Deletes checkpoints older than the last complete ones, and what was never finished before them."""
        found = self._found()
        complete = sorted(name for name, files in found.items() if MANIFEST in files)
        kept = {*complete[-self._keep :], newest}
        for name in found:
            if name not in kept and name < min(kept):
                # The manifest goes first: a half-deleted checkpoint must not look complete.
                self._storage.delete(f"checkpoints/{name}/{MANIFEST}")
                self._storage.delete(f"checkpoints/{name}/")

    def _found(self) -> dict[CheckpointName, set[str]]:
        found: dict[CheckpointName, set[str]] = {}
        for key in self._storage.list("checkpoints/"):
            if match := _FOLDER.fullmatch(key):
                name = CheckpointName(int(match[2]), int(match[3]))
                found.setdefault(name, set()).add(match[4])
        return found

    def load_newest(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Loads the newest intact checkpoint into `state`, in place.

        Args:
            state: nested dictionaries of tensors, shaped as what was saved.

        Returns:
            The manifest's content ("step", "extra", ...), or None where there is no intact checkpoint.
        """
        # Rank 0's: the others may see a storage that has changed since.
        found = broadcast_json([(name.step, name.attempt, sorted(files)) for name, files in self._found().items()])
        for step, attempt, files in sorted(found, reverse=True):
            name = CheckpointName(step, attempt)
            folder = self._scratch / "loaded" / str(name)
            problem = self._download(name, set(files), folder) if local_rank() == 0 else ""
            barrier()
            if any_rank(bool(problem)):
                if problem and self._rank == 0:
                    self._progress.message(f"checkpoint {name} is skipped: {problem}")
                continue
            _load(state, folder)
            barrier()
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            barrier()
            if local_rank() == 0:
                shutil.rmtree(folder)
            self.newest_step = name.step
            return manifest
        return None

    def _download(self, name: CheckpointName, files: set[str], folder: Path) -> str:
        """Copies a checkpoint to this node; returns what is wrong with it, or nothing."""
        if MANIFEST not in files:
            return "it was never finished (no manifest)"
        try:
            self._storage.download(f"checkpoints/{name}/{MANIFEST}", folder / MANIFEST)
            expected = json.loads((folder / MANIFEST).read_text())["files"]
            for file, digest in expected.items():
                if file not in files:
                    return f"{file} is missing"
                self._storage.download(f"checkpoints/{name}/{file}", folder / file)
                with (folder / file).open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                        return f"{file} is damaged (it is not what its hash says)"
            read_index(folder)
        except (BadInputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # An InfrastructureError goes up: a storage that is away must not look like a damaged checkpoint.
            return f"it cannot be read ({error})"
        return ""


def _load(state: dict[str, Any], folder: Path) -> None:
    """Loads a checkpoint into `state`, each rank what it needs of it, without the pickles that ranks would exchange."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        load(state, storage_reader=CheckpointReader(folder), planner=CheckpointPlanner(), no_dist=True)


def _own_group() -> dist.ProcessGroup | None:
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group
