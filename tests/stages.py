"""Running stages as whoever starts them does: a process with the environment of `dmd_api.runtime`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmd_api import runtime
from dmd_api.apps import stage_app
from dmd_api.loading import parse_manifest
from dmd_api.runtime import Progress, StageResult
from dmd_api.stages import Stage
from dmdctl.local.local_runner import free_port, read_progress

RUN_KEY = "run"
DEADLINE = 180.0


@dataclass
class StageProcess:
    """A launcher and its workers, in a process group of their own."""

    process: subprocess.Popen[bytes]
    address: str
    termination: Path
    log: Path
    seen: list[Progress] = field(default_factory=list)

    def wait_until(self, condition: Callable[[Progress], bool]) -> Progress:
        """Waits for rank 0's progress to fulfil a condition."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            progress = read_progress(self.address)
            if progress is not None:
                self.seen.append(progress)
                if condition(progress):
                    return progress
            assert self.process.poll() is None, f"it ended early: {self.log.read_text()[-3000:]}"
            time.sleep(0.01)
        raise AssertionError(f"it did not come so far: {self.seen[-1:]} {self.log.read_text()[-3000:]}")

    def wait(self) -> int:
        """The exit code, when it has ended."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """SIGKILL for all of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def result(self) -> StageResult:
        """The termination message."""
        return StageResult.model_validate_json(self.termination.read_text())


def start_stage(
    stage: Stage, manifest: dict[str, Any], folder: Path, *, processes: int = 1, attempt: int = 1, **environment: str
) -> StageProcess:
    """Starts an attempt at a stage, storage and tracking below `folder`."""
    content = json.loads(json.dumps(manifest))
    content["spec"].setdefault("storage", {"uri": (folder / "storage").as_uri()})
    content["spec"]["tracking"].setdefault("uri", f"sqlite:///{folder}/mlflow.db")
    content["spec"]["workers"] = {"nodes": 1, "processesPerNode": processes}
    address = f"127.0.0.1:{free_port()}"
    termination = folder / f"{stage}-{attempt}.json"
    app = stage_app(
        parse_manifest(content),
        stage,
        run_key=RUN_KEY,
        attempt=attempt,
        rendezvous="",
        progress_address=address,
        environment={
            runtime.TERMINATION_LOG: str(termination),
            runtime.SCRATCH: str(folder / "scratch"),
            runtime.NODE_RANK: "0",
            runtime.END_WITH_PARENT: "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )
    role = app.roles[0]
    log = folder / f"{stage}-{attempt}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *role.args],
            env={**os.environ, **role.env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return StageProcess(process, address, termination, log)


def run_stage(stage: Stage, manifest: dict[str, Any], folder: Path, **options: Any) -> StageResult:
    """Runs a stage to its end and returns what it says."""
    started = start_stage(stage, manifest, folder, **options)
    started.wait()
    return started.result()


def tracked_status(folder: Path) -> str:
    """The status that MLflow has of the run below `folder`."""
    from dmd_trainer.tracking.client import RUN_KEY_TAG, mlflow_client

    client = mlflow_client(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{RUN_KEY_TAG}` = '{RUN_KEY}'")
    return str(run.info.status)
