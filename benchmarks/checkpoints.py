"""What checkpoints cost: the example's processes, with and without a checkpoint every hundred steps, taking turns."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.digits import digits_distillation
from dmd_api.stages import Stage
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.training.checkpoints import Checkpointer

PROCESSES, STEPS, ROUNDS, LIMIT = 2, 100, 6, 0.02


def run() -> dict[str, Any]:
    """By how much training is slower (the median round), and the share of the time that it stands still in `save`."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
        subprocess.run([sys.executable, *command, "-m", "benchmarks.checkpoints", folder], check=True)
        found = json.loads(Path(folder, "found.json").read_text())
    slower, cost, stall = found["slower"], statistics.median(found["slower"]), statistics.median(found["stalled"])
    print(f"a checkpoint every {STEPS} steps: slower by {', '.join(f'{s:.2%}' for s in slower)}")
    print(f"median   {cost:8.2%}   at most {LIMIT:.0%}")
    print(f"stalled  {stall:8.2%}")
    return {"slowerBy": cost, "rounds": slower, "stalled": stall, "limit": LIMIT}


def main(folder: Path) -> None:
    """One of the processes."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    slower, stalled = [], []
    manifest, distillation = digits_distillation(folder / f"rank-{rank}", rank)
    storage = FileStorage(folder / "storage")
    checkpointer = Checkpointer(
        StageContext(Stage.DISTILL, manifest, "benchmark", 1, storage, storage, rank, scratch=folder / "scratch")
    )

    def steps_and_checkpoint() -> float:
        started = time.perf_counter()
        checkpointer.save(distillation.state(), distillation.step_count, {})
        stall = time.perf_counter() - started
        seconds = stall + _steps(distillation)
        stalled.append(stall / seconds)
        return seconds

    distillation.step()
    checkpointer.save(distillation.state(), 0, {})
    checkpointer.wait()
    for round_ in range(ROUNDS):
        # Every other round the other way round: the machine's own ups and downs should hit both alike.
        if round_ % 2:
            loaded, plain = steps_and_checkpoint(), _steps(distillation)
        else:
            plain, loaded = _steps(distillation), steps_and_checkpoint()
        slower.append(loaded / plain - 1)
    checkpointer.close()
    if rank == 0:
        (folder / "found.json").write_text(json.dumps({"slower": slower, "stalled": stalled}))
    dist.destroy_process_group()


def _steps(distillation: Distillation) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        distillation.step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(Path(sys.argv[1]))
