"""Runs a stage on torchx's local scheduler, and leaves it time for a checkpoint when it is stopped."""

import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler, Opts
from torchx.specs import macros

from dmd_api import runtime
from dmd_api.apps import stage_app
from dmd_api.causes import root_cause
from dmd_api.exit_codes import ExitCode
from dmd_api.manifest import DMDDistillation
from dmd_api.parsing import parse_model
from dmd_api.runtime import Progress, StageError, StageResult
from dmd_api.stages import SHUTDOWN_SECONDS, Stage
from dmdctl.local.stage_logs import StageLogs
from dmdctl.verbosity import is_debugging, is_verbose, show_log_line

POLL_SECONDS = 0.25
IMPORTING = "importing PyTorch"
"""What launcher and workers do before they can report anything."""
STOPPING = "stopping; a second Ctrl-C ends it at once"
GRACE_SECONDS = SHUTDOWN_SECONDS + 30
"""The time from the first Ctrl-C until launchers are killed: a little more than their workers get for a checkpoint."""


class StageScheduler(LocalScheduler):  # type: ignore[misc]
    """torchx's local scheduler, that tells which processes it started.

    torchx kills what it stops after ten seconds; a checkpoint may take longer, so the processes are signalled here.
    """

    def __init__(self) -> None:
        super().__init__("dmdctl", CWDImageProvider)
        self.processes: list[Any] = []

    def run_local_job(self, *args: Any, **kwargs: Any) -> Any:
        """Starts a replica, as torchx does, and remembers it."""
        process = super().run_local_job(*args, **kwargs)
        self.processes.append(process)
        return process


class Interrupts:
    """Counts SIGINT and SIGTERM instead of ending: the first asks for a checkpoint, the second kills."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Takes over the signals; torchx's scheduler must exist already, since it takes them too."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._note)

    def requested(self) -> bool:
        """True once the user wants to stop."""
        return self.count > 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1


@dataclass(frozen=True)
class LocalRun:
    """State that the attempts of a run on this machine share.

    Attributes:
        manifest: its defaults resolved.
        run_key: what keys the run in storage.
        logs: where each attempt's output goes.
        scratch: what may be lost.
        interrupts: whether the user wants to stop.
    """

    manifest: DMDDistillation
    run_key: str
    logs: Path
    scratch: Path
    interrupts: Interrupts

    def run_attempt(self, stage: Stage, attempt: int, show: Callable[[Progress], None]) -> StageResult:
        """Runs a stage once, showing its progress; no process of it is left afterwards.

        Args:
            stage: which.
            attempt: its number, from 1.
            show: told rank 0's progress several times a second, once there is any.
        """
        scheduler = StageScheduler()
        self.interrupts.install()
        folder = self.logs / f"{stage}-{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        termination = folder / f"termination-{macros.replica_id}.json"
        progress_address = f"127.0.0.1:{free_port()}"
        app = stage_app(
            self.manifest,
            stage,
            run_key=self.run_key,
            attempt=attempt,
            rendezvous=f"127.0.0.1:{free_port()}",
            progress_address=progress_address,
            python=sys.executable,
            environment=self._environment(str(termination)),
        )
        latest = Progress(stage=stage, attempt=attempt, activity=IMPORTING)
        show(latest)
        logs = StageLogs(folder / "output")
        app_id = scheduler.schedule(scheduler.submit_dryrun(app, Opts(log_dir=str(folder / "output"))))
        try:
            stopped_at: float | None = None
            while any(process.poll() is None for process in scheduler.processes):
                if self.interrupts.count and stopped_at is None:
                    stopped_at = time.monotonic()
                    _signal(scheduler.processes, signal.SIGTERM)
                if stopped_at and (self.interrupts.count > 1 or time.monotonic() - stopped_at > GRACE_SECONDS):
                    break
                progress = read_progress(progress_address)
                latest = progress or latest
                if stopped_at is not None:
                    since = time.monotonic() - stopped_at
                    progress = latest.model_copy(update={"activity": STOPPING, "unchanged_seconds": since})
                if progress is not None:
                    show(progress)
                _show_logs(logs)
                time.sleep(POLL_SECONDS)
        finally:
            scheduler.describe(app_id)
            for process in scheduler.processes:
                _kill_group(process)
            scheduler.close()
            _show_logs(logs, over=True)
        return self._result(stage, folder, [process.returncode for process in scheduler.processes])

    def _environment(self, termination: str) -> dict[str, str]:
        workers = self.manifest.spec.workers
        share = max(1, (os.cpu_count() or 1) // (workers.nodes * workers.processes_per_node))
        return {
            runtime.TERMINATION_LOG: termination,
            runtime.SCRATCH: f"{self.scratch}/node-{macros.replica_id}",
            runtime.SHUTDOWN_TIMEOUT: str(SHUTDOWN_SECONDS),
            runtime.END_WITH_PARENT: "1",
            # One core for each thread: threads that wait for a core cost more than they compute.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share)),
            "PYTHONUNBUFFERED": "1",
            **({runtime.DEBUG: "1"} if is_debugging() else {}),
        }

    def _result(self, stage: Stage, folder: Path, codes: list[int]) -> StageResult:
        """The stage's result: replica 0's if all went well, else the error that the others follow from."""
        results = []
        for replica in range(len(codes)):
            file = folder / f"termination-{replica}.json"
            if file.exists():
                results.append(parse_model(StageResult, file.read_bytes(), str(file)))
        if (cause := root_cause(results)) is not None:
            return cause
        allowed = (ExitCode.DONE, ExitCode.GATES_FAILED)
        if len(results) == len(codes) and all(code in allowed for code in codes):
            return results[0]
        interrupted = self.interrupts.count > 0
        return StageResult(
            stage=stage,
            error=StageError(
                reason="Interrupted" if interrupted else "WorkerLost",
                message="interrupted before a checkpoint" if interrupted else "a worker ended without a word",
                exit_code=ExitCode.INTERRUPTED if interrupted else ExitCode.UNEXPECTED,
            ),
        )


def read_progress(address: str) -> Progress | None:
    """Rank 0's progress; None while it does not serve any."""
    try:
        with urllib.request.urlopen(f"http://{address}/progress", timeout=1) as response:
            return Progress.from_answer(response.read())
    except (urllib.error.URLError, OSError, ValueError):
        return None


def free_port() -> int:
    """A port of this machine's that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _show_logs(logs: StageLogs, *, over: bool = False) -> None:
    if is_verbose():
        for line in logs.news(over=over):
            show_log_line(line)


def _signal(processes: list[Any], signum: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)


def _kill_group(process: Any) -> None:
    """Kills what is left of a replica: its launcher leads a process group that its workers are in."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
