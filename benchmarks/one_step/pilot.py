"""`python -m benchmarks.one_step.pilot [NAME ...]`: FIDs at several learning rates, on a small budget."""

import sys

import torch

from benchmarks.one_step.methods import METHODS
from benchmarks.one_step.scores import measure
from benchmarks.one_step.setting import Setting, digits_teacher
from dmd_api.errors import TrainingDivergedError

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
PILOT_BUDGET, SEED, SAMPLES = 100_000, 100, 5_000


def main() -> None:
    """Prints one line a method; the seed is none of the comparison's."""
    torch.set_num_threads(1)
    setting = Setting(*digits_teacher(), budget=PILOT_BUDGET, seed=SEED)
    for name in sys.argv[1:] or METHODS:
        found = []
        for learning_rate in LEARNING_RATES:
            try:
                fid = measure(METHODS[name][0](setting, learning_rate), SEED, SAMPLES)["fid"]
            except TrainingDivergedError:
                fid = float("inf")
            found.append(f"{learning_rate:.0e}: {fid:8.3f}")
        print(f"{name:40} {'  '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
