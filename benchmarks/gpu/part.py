"""`python -m benchmarks.gpu.part PART OUT DEVICE miniature|whole STARTED`: one part, in this process."""

import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.__main__ import BUDGETS
from benchmarks.gpu.report import Report


def main() -> None:
    """Runs the part."""
    part, out, device, size, started = sys.argv[1:]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if device == "cpu":
        torch.set_num_threads(1)
    report = Report(
        part, Path(out) / f"{part}.json", torch.device(device), size == "miniature", float(started) + BUDGETS[part]
    )
    import_module(f"benchmarks.gpu.{part}").run(report)
    report.end()


if __name__ == "__main__":
    main()
