"""`python -m benchmarks.gpu.part PART OUT DEVICE miniature|whole DEADLINE [CASE...]`: one part, in this process."""

import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.report import Report


def main() -> None:
    """Runs the part."""
    part, out, device, size, deadline, *chosen = sys.argv[1:]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if device == "cpu":
        torch.set_num_threads(1)
    report = Report(
        part, Path(out) / f"{part}.json", torch.device(device), size == "miniature", float(deadline), tuple(chosen)
    )
    import_module(f"benchmarks.gpu.{part}").run(report)
    report.end()


if __name__ == "__main__":
    main()
