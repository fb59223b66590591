"""Pairs: the same bytes for any number of workers, resumable shard by shard, damage noticed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd_api.errors import InterruptedRunError
from dmd_api.loading import parse_manifest
from dmd_api.stages import Stage
from dmd_trainer.data import pairs as pairs_module
from dmd_trainer.data.pairs import Pairs, download_shards, shard_files, shard_is_intact, shard_key
from dmd_trainer.diffusion.solvers import heun
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.stages import prepare

PAIRS = 20


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "PAIRS_PER_SHARD", 8)
    monkeypatch.setattr(pairs_module, "SOLVER_BATCH", 4)


def context(manifest: dict[str, Any], folder: Path, rank: int = 0, world_size: int = 1) -> StageContext:
    manifest["spec"]["method"]["regression"]["pairs"] = PAIRS
    storage = FileStorage(folder)
    return StageContext(
        Stage.PREPARE,
        parse_manifest(manifest),
        "run",
        1,
        storage,
        storage,
        rank,
        world_size,
        scratch=folder / "scratch",
    )


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "pairs").glob("*.safetensors")}


def test_any_number_of_workers_makes_the_same_bytes(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        for rank in range(workers):
            prepare.run(context(manifest_dict, tmp_path / str(workers), rank, workers))
    assert len(digests(tmp_path / "1")) == 3
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(tmp_path / "3")


def test_pairs_are_the_teachers_solutions_of_their_own_noise(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    here = context(manifest_dict, tmp_path)
    prepare.run(here)
    assert download_shards(here.storage, PAIRS, tmp_path / "local") == []
    pairs = Pairs(shard_files(PAIRS, tmp_path / "local"), PAIRS)
    noise, images, condition = pairs.at(torch.tensor([19, 0, 7, 8]))
    teacher = load_teacher(Path(manifest_dict["spec"]["teacher"]["uri"].removeprefix("file://")))
    expected = heun(teacher.denoiser, teacher.denoiser.schedule, noise, condition, steps=3)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_worker_goes_on_with_the_next_shard(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    here = context(manifest_dict, tmp_path)
    advance = here.progress.advance

    def stop_in_the_second_shard(count: int) -> None:
        advance(count)
        if here.progress.current.step > 8:
            here._stop.set()

    here.progress.advance = stop_in_the_second_shard  # type: ignore[method-assign]
    with pytest.raises(InterruptedRunError):
        prepare.run(here)
    first = tmp_path / shard_key(0)
    made = first.stat().st_mtime_ns
    assert not (tmp_path / shard_key(1)).exists()
    prepare.run(context(manifest_dict, tmp_path))
    assert first.stat().st_mtime_ns == made
    assert all(shard_is_intact(FileStorage(tmp_path), shard) for shard in range(3))


def test_a_damaged_or_unfinished_shard_is_made_again(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    here = context(manifest_dict, tmp_path)
    prepare.run(here)
    before = digests(tmp_path)
    (tmp_path / shard_key(0)).write_bytes(b"damaged")
    (tmp_path / f"{shard_key(2)}.sha256").unlink()
    assert download_shards(here.storage, PAIRS, tmp_path / "local") == [0, 2]
    prepare.run(context(manifest_dict, tmp_path))
    assert digests(tmp_path) == before
