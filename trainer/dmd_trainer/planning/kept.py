"""Measurements kept on this machine, by a hash of all that they depend on: a plan is often asked for again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dmd_trainer

LIBRARIES = ("torch", "diffusers", "peft", "lpips")
"""Libraries whose versions a measurement depends on."""
ROOMS = ("diffusion", "distributed", "dmd", "families", "planning")
"""Rooms of the trainer whose code it depends on."""


def kept(name: str, *key: Any, measure: Callable[[], Sequence[float]]) -> Sequence[float]:
    """What `measure` returned for this key, here or in an earlier process.

    A folder that cannot be read or written costs time and nothing else.

    Args:
        name: of what is measured.
        key: what it depends on besides code: values of JSON, and models or dataclasses of them.
        measure: measures it; finite numbers.
    """
    text = json.dumps([name, _code(), key], sort_keys=True, default=_plain)
    file = _folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        found = json.loads(file.read_text())
        if isinstance(found, list) and all(isinstance(value, int | float) for value in found):
            return found
    except (OSError, ValueError):
        pass  # it is measured again
    measured = list(measure())
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(measured))
        partial.replace(file)
    except OSError:
        pass  # so that the next plan measures it once more
    return measured


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmd-operator" / "plan"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else vars(value)


@cache
def _code() -> str:
    """A hash of the code and of the libraries' versions."""
    digest = hashlib.sha256()
    root = Path(dmd_trainer.__file__).parent
    for file in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    for library in LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\0".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()
