"""What a part has found, written after every case, so that a part that is cut off leaves what it had."""

import gc
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


@dataclass
class Report:
    """A part's results.

    Attributes:
        part: its name.
        path: of its JSON.
        device: what is checked.
        miniature: whether networks are tiny and everything is done once or twice.
        deadline: by `time.time()`.
        chosen: only cases with one of these texts in their names; all, if there are none.
    """

    part: str
    path: Path
    device: torch.device
    miniature: bool
    deadline: float
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.content: dict[str, Any] = {
            "part": self.part,
            "ended": None,
            **_machine(self.device),
            "miniature": self.miniature,
            "cases": {},
            "skipped": {},
            "failed": {},
        }
        self._write()

    @property
    def left(self) -> float:
        """Seconds left of the part's budget."""
        return self.deadline - time.time()

    def wants(self, name: str) -> bool:
        """Whether a case is one of those that are chosen."""
        return not self.chosen or any(text in name for text in self.chosen)

    @contextmanager
    def case(self, name: str, seconds: float = 0.0, *, always: bool = False) -> Iterator[dict[str, Any]]:
        """A case, whose results go into the dictionary; what it raises is reported, and the part goes on.

        Args:
            name: the case's.
            seconds: of the part's budget that must be left.
            always: others rest on it, so that it is run whatever is chosen.

        Yields:
            A dictionary for the results; with the key "skipped" the case is not to be run.
        """
        found: dict[str, Any] = {}
        if not always and not self.wants(name):
            found = {"skipped": True}
        elif self.left < seconds and not self.miniature:
            self.skip(name, f"{seconds:.0f} s needed, {self.left:.0f} s left of the part's budget")
            found = {"skipped": True}
        started = time.time()
        try:
            yield found
        except torch.OutOfMemoryError as error:
            self.fail(name, f"out of memory: {_first_line(error)}", found)
        except ModuleNotFoundError as error:
            self.skip(name, f"{error.name} is missing")
        except Exception as error:  # the next case may well work
            self.fail(name, f"{type(error).__name__}: {_first_line(error)}", found)
        else:
            if "skipped" not in found:
                self.content["cases"][name] = {**found, "seconds": round(time.time() - started, 2)}
                self._write()
                print(f"  {name}: {time.time() - started:.1f} s", flush=True)
        free_memory()

    def skip(self, name: str, reason: str) -> None:
        """A case that is not measured."""
        self.content["skipped"][name] = reason
        print(f"  {name}: skipped: {reason}", flush=True)
        self._write()

    def fail(self, name: str, reason: str, found: dict[str, Any] | None = None) -> None:
        """A case that went wrong, with what it had found."""
        self.content["failed"][name] = {"reason": reason, **(found or {})}
        print(f"  {name}: FAILED: {reason}", flush=True)
        self._write()

    def end(self) -> None:
        """The part is complete."""
        self.content["ended"] = "failed" if self.content["failed"] else "done"
        self._write()

    def _write(self) -> None:
        _write(self.path, self.content)


def free_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def end_part(path: Path, part: str, code: int | None, seconds: float) -> str:
    """Completes a part's JSON when its process has ended; how it ended."""
    content = json.loads(path.read_text()) if path.exists() else {"part": part, "cases": {}, "failed": {}}
    if content.get("ended") is None:
        content["ended"] = "cut off at its limit" if code is None else f"crashed with exit code {code}"
    content["secondsUsed"] = round(seconds, 1)
    _write(path, content)
    return str(content["ended"])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints rows with the same keys as aligned columns."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_shown(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine(device: torch.device) -> dict[str, Any]:
    import diffusers

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memoryBytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "diffusers": diffusers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(partial, path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:400]
