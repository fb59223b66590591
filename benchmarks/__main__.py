"""`python -m benchmarks [NAME ...]`: runs benchmarks and writes what they found into benchmarks/results.json."""

import json
import platform
import sys
from importlib import import_module
from pathlib import Path

import torch

NAMES = (
    "trainer",
    "sampling",
    "checkpoints",
    "quality",
    "one_step",
    "one_step.emoji",
    "operator",
    "reading",
    "serving",
)
BY_NAME = ("chaos", "glyphs", "one_step.glyphs", "quality.glyphs")
"""They take hours, and the first one root: never among all."""
RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Runs the benchmarks named on the command line, or all; results of the others are kept."""
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES + BY_NAME]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES + BY_NAME)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        print(f"\n== {name}", flush=True)
        results[name] = import_module(f"benchmarks.{name}").run()
        results["machine"] = {"processor": platform.machine(), "torch": torch.__version__}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
