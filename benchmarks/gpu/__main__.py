"""`python -m benchmarks.gpu [PART...]`: runs each part in a process of its own, with a time limit."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.report import end_part

BUDGETS = {"numbers": 70, "memory": 110, "speed": 100, "sampling": 80, "nccl": 30}
"""Seconds that each part may take."""
MINIATURE = 3
"""How many times longer a part may take in miniature: a CPU may be shared."""
GRACE = 5
"""Seconds that a part has beyond its budget to end by itself."""


def main() -> int:
    """Runs the parts; 1 if one of them failed or was cut off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(BUDGETS))
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for PART.json")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--miniature", action="store_true", help="tiny networks; always so on a CPU")
    parser.add_argument("--budget", type=float, default=1.0, help="how many times longer each part may take")
    parser.add_argument("--case", action="append", default=[], help="only cases with this text in their names")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in BUDGETS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(BUDGETS)}")
    parts = [part for part in BUDGETS if not given.parts or part in given.parts]
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    miniature = given.miniature or device == "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (given.out / f"{part}.json").unlink(missing_ok=True)

    estimates = None
    if "memory" in parts:  # which takes tens of seconds of the CPU alone: it goes on while the first part is measured
        estimates = _start("benchmarks.gpu.estimates", given.out / "estimates", "miniature" if miniature else "whole")
    try:
        good = [_run(part, given.out, device, miniature, given.budget, given.case) for part in parts]
    finally:
        if estimates is not None:
            _end(estimates)
    return 0 if all(good) else 1


def _run(part: str, out: Path, device: str, miniature: bool, budget: float, chosen: list[str]) -> bool:
    print(f"\n== {part}", flush=True)
    started = time.time()
    seconds = BUDGETS[part] * budget * (MINIATURE if miniature else 1)
    size, deadline = "miniature" if miniature else "whole", str(started + seconds)
    process = _start("benchmarks.gpu.part", part, out, device, size, deadline, *chosen)
    try:
        code = process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
    found = end_part(out / f"{part}.json", part, code, time.time() - started)
    print(f"{part}: {found}, {time.time() - started:.0f} s", flush=True)
    return found == "done"


def _start(module: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    # cuBLAS is deterministic only if told so before CUDA starts; the other parts are to be as fast as they are.
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if "numbers" in arguments else None
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)], env=environment, start_new_session=True
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
