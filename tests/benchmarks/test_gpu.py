"""`make gpu-check` in miniature: each part ends, its JSON complete, on what a bare machine has."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.gpu import estimates, memory, part
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

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path
                    if "editable" not in repr(finder)]
"""
CASES = {
    "numbers": ["against the CPU, step 0", "killed and resumed", "bf16"],
    "memory": ["SD 1.5, DMD, batch 32"],
    "speed": ["SD 1.5, DMD, batch 16", "channels-last"],
    "sampling": ["one step, batch 1", "50 guided steps, PNDM, batch 1"],
    "nccl": ["processes: 1"],
}
"""Some of each part: all of them take minutes of a CPU."""
COMPLETE = {"device", "driver", "torch", "cuda", "diffusers", "date", "skipped", "failed"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_part_ends_with_its_json_complete(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "memory":  # which the command starts beside the parts
        monkeypatch.setattr(estimates, "CASES", {case: estimates.CASES[case] for case in CASES["memory"]})
        monkeypatch.setattr(memory, "CASES", estimates.CASES)
        monkeypatch.setattr(sys, "argv", ["estimates", str(tmp_path / "estimates"), "miniature"])
        estimates.main()
    deadline = str(time.time() + 200)
    monkeypatch.setattr(sys, "argv", ["part", name, str(tmp_path), "cpu", "miniature", deadline, *CASES[name]])
    part.main()
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["ended"] == "done", found["failed"]
    assert set(CASES[name]) <= found["cases"].keys()
    assert found.keys() >= COMPLETE


@pytest.mark.slow
def test_the_command_needs_nothing_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "crds", ROOT / "trainer", ROOT)))
    options = ["--device", "cpu", "--out", str(tmp_path / "out"), "--case", "SD 1.5, DMD, batch 16"]
    # Without bytecode a process imports for a quarter of a minute.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "speed", *options],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    found = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert ended.returncode == 0, f"{found.get('failed')}\n{ended.stdout}\n{ended.stderr}"
    assert found["ended"] == "done"
    assert list(found["cases"]) == ["SD 1.5, DMD, batch 16"]
    assert found["secondsUsed"] > 0


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
