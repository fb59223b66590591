"""The glyphs' two examples, the regression and what starts from it, with three seeds: at most half an hour each.

A seed that is done is kept in `runs.jsonl` and not run again: delete its line when the trainer has changed.
"""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality import repeat
from benchmarks.runs import Runs

RUNS = Runs(Path(__file__).with_name("runs.jsonl"))
EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 1.0
"""The teacher's: DMD2 with its GAN has 1.28 to its teacher's 2.32 on ImageNet 64x64 (arXiv 2405.14867, table 1)."""


def run() -> dict[str, Any]:
    """The reports of `distill-glyphs.yaml`, each after its regression."""
    names = ("distill-glyphs-regression.yaml", "distill-glyphs.yaml")
    return repeat([yaml.safe_load((EXAMPLES / name).read_text()) for name in names], LIMIT, RUNS)
