"""The runs that are done, each stored when it ends: a comparison of hours goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("runs.jsonl")


@dataclass(frozen=True)
class Run:
    """What makes a run the same run.

    Attributes:
        task: by name.
        teacher: the first digits of the SHA-256 of its weights.
        method: by name.
        settings: its arguments but for these.
        learning_rate: None for the teacher.
        budget: network evaluations of its training.
        seed: of every draw.
        samples: how many are measured.
    """

    task: str
    teacher: str
    method: str
    settings: dict[str, Any]
    learning_rate: float | None
    budget: int
    seed: int
    samples: int


class Runs:
    """The stored runs, one JSON object a line.

    Args:
        file: where they are, and are appended to.
    """

    def __init__(self, file: Path = FILE) -> None:
        self._file = file

    def get(self, run: Run, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run's figures, from the file or else by making them."""
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            stored = json.loads(line)
            if stored["run"] == asdict(run):
                return dict(stored["figures"])
        figures = make()
        with self._file.open("a") as file:
            file.write(json.dumps({"run": asdict(run), "figures": figures}) + "\n")
        return figures
