"""Measurements that are kept: taken once, and again where a file is damaged or anything they rest on changes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmd_api.spec import Lora
from dmd_trainer.planning import kept as module
from dmd_trainer.planning.kept import kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dmd-operator" / "plan"


def counting(calls: list[int]) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        calls.append(1)
        return [1.0, 2 * 2**40]

    return measure


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert kept("bytes", {"a": 1}, Lora(rank=4), measure=counting(calls)) == [1.0, 2 * 2**40]
    assert len(calls) == 1
    kept("bytes", {"a": 1}, Lora(rank=8), measure=counting(calls))
    kept("other", {"a": 1}, Lora(rank=4), measure=counting(calls))
    assert len(calls) == 3
    assert not [path for path in folder.iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', '["a"]', "\0"])
def test_a_damaged_file_is_measured_again(content: str, folder: Path) -> None:
    calls: list[int] = []
    kept("bytes", 1, measure=counting(calls))
    (file,) = folder.iterdir()
    file.write_text(content)
    assert kept("bytes", 1, measure=counting(calls)) == [1.0, 2 * 2**40]
    assert len(calls) == 2


def test_a_folder_that_cannot_be_made_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls: list[int] = []
    for _ in range(2):
        kept("bytes", 1, measure=counting(calls))
    assert len(calls) == 2


def test_other_code_is_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kept("bytes", 1, measure=counting(calls))
    monkeypatch.setattr(module, "_code", lambda: "other")
    kept("bytes", 1, measure=counting(calls))
    assert len(calls) == 2
