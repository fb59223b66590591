"""Running stages in processes, with the environment of `dmd_api.runtime` as whoever starts them, or in this one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dmd_api import runtime
from dmd_api.apps import stage_app
from dmd_api.loading import parse_manifest
from dmd_api.runtime import Progress, StageResult
from dmd_api.stages import Stage
from dmdctl.local.local_runner import free_port, read_progress

RUN_KEY = "run"
DEADLINE = 600.0


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


@cache
def _empty_database() -> tempfile.TemporaryDirectory[str]:
    """A folder with an MLflow database without any run, as long as this process lives: making one takes seconds."""
    from mlflow import MlflowClient

    folder = tempfile.TemporaryDirectory(prefix="dmd-tests-")
    MlflowClient(f"sqlite:///{folder.name}/mlflow.db").search_experiments()
    return folder


def new_database(folder: Path) -> str:
    """The URI of an MLflow database in `folder`, made if it is not there."""
    path = folder / "mlflow.db"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(_empty_database().name, path.name), path)
    return f"sqlite:///{path}"


def _complete(manifest: dict[str, Any], folder: Path, processes: int) -> dict[str, Any]:
    """The manifest with what whoever starts a stage adds: storage and tracking, below `folder` where it names none."""
    content: dict[str, Any] = json.loads(json.dumps(manifest))
    content["spec"].setdefault("storage", {"uri": (folder / "storage").as_uri()})
    if "uri" not in content["spec"]["tracking"]:
        content["spec"]["tracking"]["uri"] = new_database(folder)
    content["spec"]["workers"] = {"nodes": 1, "processesPerNode": processes}
    return content


def start_stage(
    stage: Stage, manifest: dict[str, Any], folder: Path, *, processes: int = 1, attempt: int = 1, **environment: str
) -> StageProcess:
    """Starts an attempt at a stage, storage and tracking below `folder`."""
    address = f"127.0.0.1:{free_port()}"
    termination = folder / f"{stage}-{attempt}.json"
    app = stage_app(
        parse_manifest(_complete(manifest, folder, processes)),
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


def run_stage_here(stage: Stage, manifest: dict[str, Any], folder: Path) -> StageResult:
    """Runs a stage's only worker in this process, which has imported what it needs; there is no launcher."""
    from dmd_trainer.runtime import launcher, worker

    content = parse_manifest(_complete(manifest, folder, processes=1))
    variables = {
        launcher.RESULTS: str(folder),
        runtime.MANIFEST: content.model_dump_json(by_alias=True),
        runtime.RUN_KEY: RUN_KEY,
        runtime.SCRATCH: str(folder / "scratch"),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    with (
        _own_signals_and_threads(),
        patch.dict(os.environ, variables),
        patch.object(worker, "end_with_parent"),
        patch.object(sys, "argv", ["worker", str(stage)]),
    ):
        worker.main()
    return StageResult.model_validate_json((folder / "rank-00000.json").read_text())


@contextmanager
def _own_signals_and_threads() -> Iterator[None]:
    """Restores what a worker changes of its process, and leaves no process group behind, as its end would."""
    import torch
    import torch.distributed as dist

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
