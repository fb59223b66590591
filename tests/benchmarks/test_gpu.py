"""`make gpu-check` in miniature: each part ends, its JSON complete, on what a bare machine has."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from benchmarks.gpu import estimates, memory, part
from benchmarks.gpu.speed import idle_share
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CARRIED = ("torch", "numpy", "diffusers", "safetensors", "pydantic")
OURS = {"dmd_api", "dmd_trainer", "benchmarks"}


def needs_of(names: Iterable[str]) -> set[str]:
    """The distributions that these need to be installed, and those that they need in turn."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def blocked() -> list[str]:
    """The packages that are installed here and that a bare machine lacks."""
    carried = needs_of(CARRIED)
    return sorted(
        package
        for package, distributions in metadata.packages_distributions().items()
        if package not in OURS and not carried & {canonicalize_name(name) for name in distributions}
    )


BLOCKER = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked()!r} else PathFinder.find_spec(name, path, target)

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
    assert {"boto3", "mlflow", "rich", "scipy", "transformers", "peft", "kubernetes"} <= set(blocked())
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
