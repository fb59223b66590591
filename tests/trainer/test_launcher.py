"""How stages end: exit codes and termination messages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Stage
from tests.stages import start_stage


def test_an_unknown_stage_is_bad_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dmd_trainer", "dance"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.BAD_INPUT
    assert "usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_teacher_is_told_in_the_termination_message(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["teacher"]["uri"] = tmp_path.as_uri()
    stage = start_stage(Stage.PREPARE, manifest_dict, tmp_path)
    assert stage.wait() == ExitCode.BAD_INPUT
    error = stage.result().error
    assert error is not None
    assert error.reason == "BadInput"
    assert "not a diffusers pipeline" in error.message


def test_a_worker_that_is_killed_is_told_with_the_likely_cause(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["method"]["regression"] |= {"pairs": 100_000, "solverSteps": 400}
    stage = start_stage(Stage.PREPARE, manifest_dict, tmp_path)
    stage.wait_until(lambda progress: progress.total > 0)
    (worker,) = psutil.Process(stage.process.pid).children()
    worker.kill()
    assert stage.wait() == ExitCode.UNEXPECTED
    error = stage.result().error
    assert error is not None
    assert error.reason == "WorkerLost"
    assert "memory" in error.message


def test_sigterm_never_ends_in_success(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["method"]["regression"] |= {"pairs": 100_000, "solverSteps": 100}
    stage = start_stage(Stage.PREPARE, manifest_dict, tmp_path)
    stage.wait_until(lambda progress: progress.total > 0)
    stage.process.send_signal(signal.SIGTERM)
    assert stage.wait() == ExitCode.INTERRUPTED
    error = stage.result().error
    assert error is not None
    assert error.reason == "Interrupted"


def test_a_launcher_that_is_killed_takes_its_workers_along(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["method"]["regression"] |= {"pairs": 100_000, "solverSteps": 100}
    stage = start_stage(Stage.PREPARE, manifest_dict, tmp_path)
    stage.wait_until(lambda progress: progress.total > 0)
    workers = psutil.Process(stage.process.pid).children(recursive=True)
    assert workers
    os.kill(stage.process.pid, signal.SIGKILL)
    stage.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_storage_that_cannot_be_written_fails_preflight(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file in the way")
    stage = start_stage(Stage.PREFLIGHT, manifest_dict, tmp_path)
    assert stage.wait() == ExitCode.INFRASTRUCTURE
    assert "storage" in json.loads(stage.termination.read_text())["error"]["message"]
