"""What checkpoints cost: the same steps with and without one every hundred, taking turns."""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.digits import digits_distillation
from dmd_trainer.checkpoints import Checkpointer
from dmd_trainer.storage import FileStorage

STEPS, ROUNDS, LIMIT = 100, 4, 0.02


def run() -> dict[str, Any]:
    """The share of the time that training is slower by, and the share that it stands still in `save`."""
    with tempfile.TemporaryDirectory() as folder:
        _, distillation = digits_distillation(Path(folder))
        checkpointer = Checkpointer(FileStorage(Path(folder) / "storage"), Path(folder) / "scratch", attempt=1)
        distillation.step()
        plain = with_checkpoints = stalled = 0.0
        for round_ in range(ROUNDS):
            plain += _steps(distillation)
            started = time.perf_counter()
            checkpointer.save(distillation.state(), round_, {})
            stalled += time.perf_counter() - started
            _steps(distillation)
            with_checkpoints += time.perf_counter() - started
        checkpointer.close()
    slower, stall = with_checkpoints / plain - 1, stalled / with_checkpoints
    print(f"{STEPS} steps: {plain / ROUNDS:.2f} s; with a checkpoint: {with_checkpoints / ROUNDS:.2f} s")
    print(f"slower by  {slower:8.2%}   at most {LIMIT:.0%}")
    print(f"stalled    {stall:8.2%}")
    return {"slowerBy": slower, "stalled": stall, "limit": LIMIT}


def _steps(distillation: Any) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        distillation.step()
    return time.perf_counter() - started
