"""`python -m benchmarks.gpu.resume FOLDER DEVICE STEPS`: goes on from a kept state, as after a kill."""

import os
import sys
from pathlib import Path

import torch

from benchmarks.gpu.digits import digits_on, kept
from dmd_trainer.data.pairs import PAIRS_PER_SHARD, Pairs, shard_files

STATE, RESUMED = "state.pt", "resumed.pt"


def main() -> None:
    """Loads the state, counts on, and keeps where that leads."""
    folder, device, steps = Path(sys.argv[1]), torch.device(sys.argv[2]), int(sys.argv[3])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    deterministic()
    if device.type == "cpu":
        torch.set_num_threads(1)
    distillation = digits_on(device, opened_pairs(folder))
    saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    distillation.load_state(saved["state"], saved["step"])
    for _ in range(steps):
        distillation.step()
    torch.save({"state": kept(distillation)}, folder / "partial.pt")
    os.replace(folder / "partial.pt", folder / RESUMED)


def deterministic() -> None:
    """From here on the same numbers are summed in the same order; what cannot be done so warns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def opened_pairs(folder: Path) -> Pairs:
    """The pairs that another process made below `folder`."""
    from benchmarks.digits import PAIRS

    assert PAIRS <= PAIRS_PER_SHARD
    return Pairs(shard_files(PAIRS, folder / "local"), PAIRS)


if __name__ == "__main__":
    main()
