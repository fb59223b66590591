"""`dmdctl run`, whole: resumed after Ctrl-C, nothing to do the second time, gates, sampling, failures."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from dmd_api.exit_codes import ExitCode
from dmdctl.local.local_runner import IMPORTING, STOPPING
from tests.cli.test_cli import DMDCTL, dmdctl
from tests.trainer.fake_hub import TOKEN, Written, hub


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(DMDCTL), "run", "m.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(seen)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def assert_all_gone(processes: list[psutil.Process], seconds: float = 60) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive


@pytest.fixture(scope="module")
def module_manifest(tiny_teacher: Path) -> dict[str, Any]:
    from tests.conftest import MANIFEST

    content: dict[str, Any] = json.loads(json.dumps(MANIFEST))
    content["spec"]["teacher"]["uri"] = tiny_teacher.as_uri()
    content["spec"]["workers"] = {"nodes": 2, "processesPerNode": 1}
    return content


@pytest.fixture
def served() -> Iterator[ExitStack]:
    """Servers that run until the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_way_with_a_ctrl_c_in_between(
    module_manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: ExitStack
) -> None:
    manifest = json.loads(json.dumps(module_manifest))
    manifest["spec"]["training"] |= {"generatorUpdates": 400, "checkpointEvery": 200, "sampleEvery": 200}
    manifest["spec"]["evaluation"]["every"] = 200
    manifest["spec"]["gates"] = [{"metric": "FID", "max": 1e-6}]
    manifest["spec"]["publish"] = {"huggingFace": {"repo": "team/tiny"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    published = Written()
    url, _ = served.enter_context(hub({}, owner="team", written=published))
    for variable, value in {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(variable, value)

    # Interrupted while it trains: exit code 130, a checkpoint, no process left.
    first = start(tmp_path)
    read_until(first, r"distill: \d+/400 .*training")
    processes = children_of(first.pid)
    assert processes
    second = dmdctl("run", "m.yaml", folder=tmp_path)
    assert second.returncode == ExitCode.BAD_INPUT
    assert "going on already" in second.stderr
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=600)
    assert first.returncode == ExitCode.INTERRUPTED, output
    assert "distill: " + STOPPING in re.sub(r"\d+/400 generator updates · ", "", output)
    assert "interrupted at step" in output
    assert_all_gone(processes)

    # The same command goes on, and the gate that nothing can pass fails.
    done = dmdctl("run", "m.yaml", folder=tmp_path)
    assert done.returncode == ExitCode.GATES_FAILED, done.stdout + done.stderr
    assert "going on from step" in done.stdout
    assert "pairs: done before" in done.stdout
    assert "gate failed: FID" in done.stdout
    (run,) = (tmp_path / "dmd-runs").glob("tiny-*")
    report = json.loads((run / "report.json").read_text())
    for key in ("fid", "recall", "accuracy", "networkEvaluations", "secondsPerImage", "gates", "seed", "manifestHash"):
        assert key in report
    assert set(report["fid"]) == {"teacher", "initial", "generator"}
    assert report["networkEvaluations"] == {"teacher": 5, "generator": 1}
    assert report["alias"] is None
    assert list((run / "checkpoints").iterdir())
    assert not report["gates"][0]["passed"]
    assert (published.repositories, published.commits) == ({"team/tiny": {}}, {})  # made, and nothing is in it
    for name in ("teacher", "generator", "training", "curves"):
        assert Image.open(run / "samples" / f"{name}.png").size[0] > 100

    # Nothing is left to do, which another program is told in JSON.
    done = dmdctl("run", "m.yaml", "--output", "json", folder=tmp_path)
    assert done.returncode == ExitCode.GATES_FAILED
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["note"] for one in told if one["event"] == "finish"] == ["done before"] * 4
    assert (told[-1]["event"], told[-1]["exitCode"], told[-1]["report"]) == ("result", 3, report)

    # Other gates are asked of the same generator: only the evaluation runs, and the same version gets its alias.
    manifest["spec"]["gates"] = []
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    done = dmdctl("run", "m.yaml", folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert done.stdout.count("done before") == 3
    report = json.loads((run / "report.json").read_text())
    assert (report["alias"], report["modelVersion"]) == ("champion", "1")
    assert report["published"] == f"hf://team/tiny@{published.head('team/tiny')}"
    assert report["published"] in done.stdout
    assert published.commits == {"team/tiny": ["tiny, version 1 of tiny"]}
    assert {"README.md", "model_index.json", "samples.png"} <= published.repositories["team/tiny"].keys()
    # The run is complete: by storage.retain's defaults its pairs stay and its checkpoints go.
    assert not list((run / "checkpoints").glob("*"))
    assert list((run / "pairs").iterdir())

    # Another run can start from what is registered: the alias is looked for in this run's registry.
    manifest["spec"]["method"]["initFrom"] = {"generator": {"uri": "models:/tiny@challenger"}}
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(manifest))
    done = dmdctl("run", "next.yaml", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "alias challenger not found" in done.stdout + done.stderr

    # What is registered can be sampled.
    done = dmdctl("sample", "models:/tiny@champion", "--out", "grid.png", "--count", 20, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    done = dmdctl("sample", "models:/tiny@champion", "--benchmark", "--batch-size", 4, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["1", "4"]
    assert all(float(row.split()[-2]) > 0 for row in rows)
    done = dmdctl("sample", "models:/tiny@champion", "--benchmark", "--precision", "int8", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "'fp32', 'fp16', 'bf16'" in done.stderr
    done = dmdctl("sample", "models:/tiny@champion", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "--out: missing" in done.stderr
    done = dmdctl("sample", "models:/tiny@champion", "--out", "g.png", "--class-labels", "12", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "labels 0 to 9" in done.stderr

    # MLflow has the run: one, with parameters, losses, FID, pictures.
    from dmd_trainer.tracking.client import mlflow_client

    client = mlflow_client(f"sqlite:///{tmp_path}/dmd-runs/mlflow.db")
    info = client.get_run(report["mlflowRun"])
    assert info.info.status == "FINISHED"
    assert info.data.params["training.batchSize"] == "8"
    for metric in ("loss/distribution_matching", "gradient_norm/generator", "evaluation/FID", "images_per_second"):
        assert client.get_metric_history(report["mlflowRun"], metric)
    assert {f.path for f in client.list_artifacts(report["mlflowRun"])} >= {"images", "pictures", "report.json"}


@pytest.mark.timeout(900)
def test_no_process_outlives_a_command_that_is_killed(module_manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(module_manifest))
    process = start(tmp_path)
    assert f"preflight: {IMPORTING}\n" in read_until(process, r"preflight: \d+/\d+ checks")
    processes = children_of(process.pid)
    assert processes
    process.kill()
    process.wait(20)
    assert_all_gone(processes)


@pytest.mark.timeout(900)
def test_what_only_a_look_can_tell_is_found_by_preflight(module_manifest: dict[str, Any], tmp_path: Path) -> None:
    manifest = json.loads(json.dumps(module_manifest))
    manifest["spec"]["data"] = {"classLabels": {"count": 4}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    done = dmdctl("run", "m.yaml", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT, done.stdout
    assert "spec.data.classLabels.count: 4, but the teacher embeds 10" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "pairs: starting" not in done.stdout
