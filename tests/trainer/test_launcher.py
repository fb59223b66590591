"""How stages end: exit codes and termination messages."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from dmd_api import runtime
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmdctl.local.local_runner import free_port
from tests.stages import start_stage


def test_an_unknown_stage_is_bad_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dmd_trainer", "dance"], capture_output=True, text=True, timeout=180, check=False
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


@pytest.mark.parametrize("rank", [0, 1])
def test_peers_that_do_not_come_are_told(rank: int, tmp_path: Path) -> None:
    termination = tmp_path / "termination"
    told = {
        runtime.RUN_KEY: "run",
        runtime.NODES: "2",
        runtime.NODE_RANK: str(rank),
        runtime.RENDEZVOUS: f"localhost:{free_port()}",
        runtime.RENDEZVOUS_TIMEOUT: "2",
        runtime.TERMINATION_LOG: str(termination),
    }
    command = [sys.executable, "-m", "dmd_trainer", "distill"]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == ExitCode.INFRASTRUCTURE
    error = StageResult.model_validate_json(termination.read_text()).error
    assert error is not None
    assert error.reason == "RendezvousTimeout"
    assert "the 2 workers did not come together within 2 s" in error.message
    assert "Traceback" not in done.stderr
