"""`make gpu-check` in miniature: each part ends, its JSON complete, on what a bare machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu.speed import idle_share

ROOT = Path(__file__).parents[2]
BLOCKED = [
    *("rich", "typer", "boto3", "botocore", "mlflow", "pyarrow", "matplotlib", "scipy", "sklearn", "transformers"),
    *("kubernetes", "torchx", "tenacity", "lpips", "peft", "accelerate", "torchvision", "pandas", "dmdctl"),
    *("dmd_operator", "prometheus_client", "torch_fidelity"),
]
BLOCKER = f"""
import sys
from importlib.machinery import PathFinder

class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path
                    if "editable" not in repr(finder)]
"""
EXPECTED = {
    "numbers": ["against the CPU, step 0", "killed and resumed", "bf16", "fp8 teacher", "offloaded teacher"],
    "memory": ["SD 1.5, DMD, batch 32", "SD 1.5, DMD2 with GAN, batch 32", "SDXL, DMD2 with GAN, whole"],
    "speed": ["SD 1.5, DMD, batch 16", "channels-last"],
    "sampling": ["one step, batch 1", "50 guided steps, PNDM, batch 1"],
    "nccl": ["processes: 2", "processes: 1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", EXPECTED)
def test_a_part_ends_with_its_json_complete_on_a_bare_machine(part: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "crds", ROOT / "trainer", ROOT)))
    command = [sys.executable, "-m", "benchmarks.gpu", part, "--device", "cpu", "--out", str(tmp_path / "out")]
    # Without bytecode a process imports for a quarter of a minute.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": path}
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    found = json.loads((tmp_path / "out" / f"{part}.json").read_text())
    assert ended.returncode == 0, f"{found.get('failed')}\n{ended.stdout}\n{ended.stderr}"
    assert found["ended"] == "done"
    assert set(EXPECTED[part]) <= found["cases"].keys()
    assert {"device", "driver", "torch", "cuda", "diffusers", "date", "secondsUsed", "skipped"} <= found.keys()


def test_gaps_between_kernels_are_put_down_to_what_the_cpu_did() -> None:
    def event(category: str, name: str, start: float, length: float) -> dict[str, object]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 1, "tid": category[:4]}

    found = idle_share(
        [
            event("kernel", "a", 0, 1000),
            event("kernel", "b", 3000, 1000),
            event("user_annotation", "keyed draws", 1000, 1500),
            event("cpu_op", "aten::randn", 500, 700),
        ]
    )
    assert found["share"] == pytest.approx(0.5)
    assert found["milliseconds"] == pytest.approx(2)
    assert found["causes"]["keyed draws"] == pytest.approx(1.5)
    assert found["causes"]["aten::randn"] == pytest.approx(0.2)
