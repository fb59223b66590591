"""What is stored of the comparison's runs, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import Runs

RUNS = Runs(Path(__file__).with_name("runs.jsonl"))


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
