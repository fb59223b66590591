"""Processes that cannot outlive the one that started them, with their output in a file."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import owners

DEADLINE = 120.0
_POLL = 0.05


class ClusterError(RuntimeError):
    """Something of the test cluster did not start or did not end; the message has the end of its log."""


@dataclass
class Daemon:
    """A process that runs until it is stopped, as the leader of a process group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises ClusterError if it has ended."""
        if self.process.poll() is not None:
            raise ClusterError(f"{self.name} ended with {self.process.returncode}:\n{tail(self.log)}")

    def stop(self) -> None:
        """Ends it at once, as a crash does: none of these programs loses what it has answered for."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(20)


def start(name: str, command: Sequence[str | Path], logs: Path, enter: Sequence[str] = ()) -> Daemon:
    """Starts `command` through `enter`, the beginning of an nsenter or unshare command line.

    It is killed when the thread that called this ends. Linux alone can tie a process to its parent's life; elsewhere
    only `Daemon.stop` ends it.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    # After nsenter, which may fork: what nsenter starts dies with nsenter, and nsenter dies with this process.
    tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*tied, *enter, *(tied if enter else ()), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # For whoever sweeps up after this process.
    log.with_suffix(".pid").write_text(owners.identity(process.pid))
    return Daemon(name, process, log)


def wait_for(condition: Callable[[], object], what: str, *daemons: Daemon, deadline: float = DEADLINE) -> None:
    """Returns when `condition` holds; raises ClusterError at the deadline, or when one of `daemons` ends before."""
    until = time.monotonic() + deadline
    while not condition():
        for daemon in daemons:
            daemon.check()
        if time.monotonic() > until:
            logs = "\n".join(f"{daemon.name}:\n{tail(daemon.log)}" for daemon in daemons)
            raise ClusterError(f"{what}: not within {deadline:.0f} s\n{logs}")
        time.sleep(_POLL)


def call(command: Sequence[str | Path], text: str | None = None, timeout: float = DEADLINE) -> str:
    """What `command` prints, given `text` on its standard input; raises ClusterError with what it says if it fails."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(words, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(words)} took more than {timeout:.0f} s") from error
    if result.returncode:
        raise ClusterError(f"{' '.join(words)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def tail(log: Path, size: int = 3000) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-size:] if log.exists() else ""
