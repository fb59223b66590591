"""Who a cluster belongs to: processes known by their number and their start, since numbers are used again."""

import contextlib
import os
import signal
from pathlib import Path


def identity(pid: int) -> str:
    """A process as a word that no other process ever has until the machine starts anew; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{pid}-{fields[19]}-{boot}"


def alive(identity_: str) -> bool:
    """Whether the process that was `identity_` still runs."""
    return identity_ != "" and identity(pid_of(identity_)) == identity_


def pid_of(identity_: str) -> int:
    """The number of a process, from its identity."""
    return int(identity_.partition("-")[0])


def send(identity_: str, signum: signal.Signals) -> None:
    """Sends a signal to that process and to no other."""
    if alive(identity_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid_of(identity_), signum)
