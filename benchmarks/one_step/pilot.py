"""`python -m benchmarks.one_step.pilot [TASK [NAME ...]]`: FIDs at several learning rates, on a seed of its own."""

import sys

import torch

from benchmarks.one_step import BUDGETS, distilled
from benchmarks.one_step.methods import METHODS
from benchmarks.one_step.tasks import TASKS
from dmd_api.errors import TrainingDivergedError

PILOT_BUDGETS = {"digits": 100_000, "glyphs": BUDGETS["glyphs"]}
SEED, SAMPLES = 100, {"digits": 5_000, "glyphs": 10_000}


def main(name: str = "digits", *methods: str) -> None:
    """Prints one line a method; finished runs are stored, and not made again."""
    torch.set_num_threads(1)
    task = TASKS[name]()
    for method in methods or METHODS[name]:
        found = []
        for learning_rate in METHODS[name][method].tried:
            try:
                fid = distilled(task, method, learning_rate, PILOT_BUDGETS[name], SEED, SAMPLES[name])["fid"]
            except TrainingDivergedError:
                fid = float("inf")
            found.append(f"{learning_rate:.0e}: {fid:8.3f}")
        print(f"{method:40} {'  '.join(found)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
