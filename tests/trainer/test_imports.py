"""What a process of a stage imports before it works: each second of it is paid by every worker of every stage."""

import json
import os
import subprocess
import sys

HEAVY = {
    "boto3",
    "lpips",
    "matplotlib",
    "mlflow",
    "pandas",
    "peft",
    "pyarrow",
    "scipy.stats",
    "sklearn",
    "torch_fidelity",
    "torchvision",
    "transformers",
}
# diffusers' networks import some of these themselves, wherever they are installed: only what comes on top is ours.
SCRIPT = """
import json
import sys

import dmd_trainer.runtime.launcher
import dmd_trainer.runtime.worker

launcher = set(sys.modules)
from diffusers import UNet2DModel

theirs = set(sys.modules) - launcher
import dmd_trainer.stages.distill
import dmd_trainer.tracking.tracker

print(json.dumps([sorted(launcher), sorted(set(sys.modules) - theirs)]))
"""


def test_a_distilling_worker_imports_nothing_heavy_that_diffusers_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=280)
    launcher, distill = (set(modules) for modules in json.loads(done.stdout.splitlines()[-1]))
    assert launcher & (HEAVY | {"diffusers", "torch._dynamo"}) == set()
    assert distill & HEAVY == set()
    assert "dmd_trainer.stages.distill" in distill


def test_mlflow_reports_nothing_to_its_makers() -> None:
    code = "import dmd_trainer, mlflow.environment_variables as own; print(own.MLFLOW_DISABLE_TELEMETRY.get())"
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=clean)
    assert done.stdout.strip() == "True"
