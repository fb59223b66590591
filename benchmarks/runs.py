"""The runs that are done, each stored when it ends: a benchmark of hours goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Runs:
    """The stored runs, one JSON object a line.

    Args:
        file: where they are, and are appended to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, run: "DataclassInstance", make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of what `run` describes, from the file or else by making them."""
        described = json.loads(json.dumps(asdict(run)))  # tuples become lists, as in the file
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            stored = json.loads(line)
            if stored["run"] == described:
                return dict(stored["figures"])
        figures = make()
        with self._file.open("a") as file:
            file.write(json.dumps({"run": described, "figures": figures}) + "\n")
        return figures
