"""Checkpoints: the newest intact one is found, damaged and half-written ones are named and skipped."""

import copy
import dataclasses
import hashlib
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from dmd_api.errors import InfrastructureError
from dmd_api.loading import parse_manifest
from dmd_api.stages import Stage
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.training.checkpoint_reader import read_index
from dmd_trainer.training.checkpoints import Checkpointer
from tests.conftest import MANIFEST


@pytest.fixture
def messages() -> list[str]:
    return []


def checkpointer(folder: Path, messages: list[str], attempt: int = 1, keep: int = 2) -> Checkpointer:
    manifest = copy.deepcopy(MANIFEST)
    manifest["spec"]["training"]["keepCheckpoints"] = keep
    storage = FileStorage(folder / "storage")
    context = StageContext(
        Stage.DISTILL, parse_manifest(manifest), "run", attempt, storage, storage, scratch=folder / "scratch"
    )
    context.progress.message = messages.append  # type: ignore[method-assign]
    return Checkpointer(context)


def state(value: float) -> dict[str, Any]:
    """As an optimiser's, not of tensors alone."""
    groups = [{"lr": value, "betas": (0.9, 0.99), "foreach": None, "fused": False, "params": ["a", "b"]}]
    return {
        "network": {"weight": torch.full((3, 2), value)},
        "optimizer": {"step": torch.tensor(value), "groups": groups},
    }


def save(folder: Path, messages: list[str], steps: list[int], **options: int) -> None:
    saving = checkpointer(folder, messages, **options)
    for step in steps:
        saving.save(state(float(step)), step, {"note": step})
    saving.close()


def load(folder: Path, messages: list[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    found = state(-1.0)
    loading = checkpointer(folder, messages, attempt=9)
    manifest = loading.load_newest(found)
    loading.close()
    return manifest, found


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "storage" / "checkpoints").iterdir())


def test_who_waits_for_a_checkpoint_to_be_written_says_so(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = checkpointer(tmp_path, messages)
    progress, waits, seen = saving._progress, threading.Event(), []
    upload, update = FileStorage.upload, progress.update

    def upload_late(storage: FileStorage, path: Path, key: str) -> None:
        assert waits.wait(60)
        upload(storage, path, key)

    def updated(**fields: Any) -> None:
        update(**fields)
        seen.append(fields["activity"])
        waits.set()

    monkeypatch.setattr(FileStorage, "upload", upload_late)
    progress.update(activity="training")
    monkeypatch.setattr(progress, "update", updated)
    saving.save(state(1.0), 1, {})
    saving.wait()
    saving.wait()
    saving.close()
    assert seen == ["uploading a checkpoint", "training"]


def test_the_newest_is_loaded_and_older_ones_are_deleted(tmp_path: Path, messages: list[str]) -> None:
    save(tmp_path, messages, [10, 20, 30])
    assert names(tmp_path) == ["step-000020-attempt-1", "step-000030-attempt-1"]
    manifest, found = load(tmp_path, messages)
    assert manifest is not None
    assert (manifest["step"], manifest["extra"]) == (30, {"note": 30})
    assert torch.equal(found["network"]["weight"], torch.full((3, 2), 30.0))
    assert found["optimizer"]["groups"] == state(30.0)["optimizer"]["groups"]
    assert messages == []


def test_without_a_checkpoint_nothing_is_loaded(tmp_path: Path, messages: list[str]) -> None:
    manifest, found = load(tmp_path, messages)
    assert manifest is None
    assert torch.equal(found["network"]["weight"], torch.full((3, 2), -1.0))


def test_what_is_copied_is_what_was_there_when_save_returned(tmp_path: Path, messages: list[str]) -> None:
    saving = checkpointer(tmp_path, messages)
    present = state(1.0)
    saving.save(present, 1, {})
    present["network"]["weight"].fill_(99.0)
    saving.close()
    assert torch.equal(load(tmp_path, messages)[1]["network"]["weight"], torch.full((3, 2), 1.0))


def damage(folder: Path, how: str) -> str:
    newest = folder / "storage" / "checkpoints" / "step-000020-attempt-1"
    data = next(newest.glob("__0_*"))
    match how:
        case "flipped":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
            return "damaged"
        case "cut":
            data.write_bytes(data.read_bytes()[:-10])
            return "damaged"
        case "missing":
            data.unlink()
            return "is missing"
        case "no manifest":
            (newest / "manifest.json").unlink()
            return "never finished"
        case "torn manifest":
            (newest / "manifest.json").write_text('{"step": 20, "fi')
            return "cannot be read"
        case "foreign manifest":
            (newest / "manifest.json").write_text(json.dumps([1, 2]))
            return "cannot be read"
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "no manifest", "torn manifest", "foreign manifest"])
def test_a_damaged_one_is_named_and_skipped(how: str, tmp_path: Path, messages: list[str]) -> None:
    save(tmp_path, messages, [10, 20])
    expected = damage(tmp_path, how)
    manifest, found = load(tmp_path, messages)
    assert manifest is not None
    assert manifest["step"] == 10
    assert torch.equal(found["network"]["weight"], torch.full((3, 2), 10.0))
    (message,) = messages
    assert "step-000020-attempt-1 is skipped" in message
    assert expected in message


def test_a_later_attempt_wins_at_the_same_step(tmp_path: Path, messages: list[str]) -> None:
    save(tmp_path, messages, [10], attempt=1)
    saving = checkpointer(tmp_path, messages, attempt=2)
    saving.save(state(11.0), 10, {})
    saving.close()
    assert torch.equal(load(tmp_path, messages)[1]["network"]["weight"], torch.full((3, 2), 11.0))


def test_a_storage_that_is_away_is_not_taken_for_damage(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, messages, [10])

    def away(self: FileStorage, key: str, path: Path) -> None:
        raise InfrastructureError("the storage does not answer")

    monkeypatch.setattr(FileStorage, "download", away)
    with pytest.raises(InfrastructureError):
        load(tmp_path, messages)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "storage").write_text("a file in the way")
    saving = checkpointer(tmp_path, messages)
    saving.save(state(1.0), 1, {})
    with pytest.raises(InfrastructureError, match="storage"):
        saving.wait()


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


def replace_index(folder: Path, change: Callable[[Any], Any]) -> Path:
    """Changes the newest checkpoint's index, and its hash; returns the checkpoint."""
    newest = folder / "storage" / "checkpoints" / "step-000020-attempt-1"
    index = pickle.loads((newest / ".metadata").read_bytes())
    (newest / ".metadata").write_bytes(pickle.dumps(change(index)))
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"][".metadata"] = hashlib.sha256((newest / ".metadata").read_bytes()).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    return newest


def as_bytes(index: Any) -> Any:
    """Says that a tensor is another value, which torch's own planner would unpickle."""
    index.state_dict_metadata = dict.fromkeys(index.state_dict_metadata, BytesStorageMetadata())
    for place in index.storage_data.values():
        place.offset, place.length = 0, 10_000
    return index


def elsewhere(name: str) -> Callable[[Any], Any]:
    """Says that the tensors are in another file."""

    def change(index: Any) -> Any:
        for place in index.storage_data.values():
            place.relative_path = name
        return index

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: Payload(Path("it-was-run")), "pathlib.Path.touch, which was not run"),
        (
            lambda index: dataclasses.replace(index, planner_data=Payload(Path("it-was-run"))),
            "pathlib.Path.touch, which was not",
        ),
        (as_bytes, "Weights only load failed"),
        (elsewhere("/etc/hostname"), "not a path below a folder"),
        (elsewhere("../step-000010-attempt-1/__0_0.distcp"), "not a path below a folder"),
        (elsewhere("other.distcp"), "other.distcp is missing"),
        (lambda index: {"a": 1}, "no attribute 'storage_data'"),
    ],
)
def test_an_index_is_data(
    change: Callable[[Any], Any], reason: str, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, messages, [10, 20])
    newest = replace_index(tmp_path, change)
    torch.save(Payload(Path("it-was-run")), newest / "__0_0.distcp")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["__0_0.distcp"] = hashlib.sha256((newest / "__0_0.distcp").read_bytes()).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    found, values = load(tmp_path, messages)
    assert found is not None
    assert found["step"] == 10
    assert torch.equal(values["network"]["weight"], torch.full((3, 2), 10.0))
    (message,) = messages
    assert "step-000020-attempt-1 is skipped" in message
    assert reason in message
    assert not Path("it-was-run").exists()


def test_an_index_with_all_kinds_of_tensors_is_read(tmp_path: Path) -> None:
    """Element types, layouts and memory formats are names in it, and where it was written to is one of its values."""
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
    content = {f"of {kind}": torch.zeros(2, 3, 4, 4, dtype=kind) for kind in kinds}
    content["last"] = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    dcp_save({"network": content}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    assert read_index(tmp_path).state_dict_metadata.keys() == {f"network.{name}" for name in content}
