"""The results of chaos: a line of JSON for each run, and what they come to."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

RUNS = Path(__file__).with_name("runs.jsonl")


def read(path: Path = RUNS) -> dict[int, dict[str, Any]]:
    """The runs that were made, by their number."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry["number"]: entry for entry in map(json.loads, lines)}


def write(entry: dict[str, Any], path: Path = RUNS) -> None:
    """Adds a run, whole or not at all where the machine is switched off."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def missing(made: dict[int, dict[str, Any]], wanted: int) -> list[int]:
    """The numbers that are yet to be run."""
    return [number for number in range(wanted) if number not in made]


def summary(made: dict[int, dict[str, Any]], wanted: int) -> dict[str, Any]:
    """What all runs come to: each one is complete with the undisturbed run's weights, or failed and said why."""
    outcomes = Counter(entry["outcome"] for entry in made.values())
    wrong = sorted(number for number, entry in made.items() if entry["wrong"])
    disturbances = Counter(done["what"] for entry in made.values() for done in entry["disturbances"])
    return {
        "runs": len(made),
        "wanted": wanted,
        "missing": missing(made, wanted),
        "outcomes": dict(sorted(outcomes.items())),
        "disturbances": dict(sorted(disturbances.items())),
        "wrong": {"runs": wrong, "limit": 0},
    }
