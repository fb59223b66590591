"""Sharded gradients against whole ones: two processes where the backend allows two on a device, and one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import Report, print_table

TOLERANCE = 1e-4
"""Of float32 gradients, relative."""


def run(report: Report) -> None:
    """Tries two processes and one at the same time: either may hang."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        sizes = [size for size in (2, 1) if report.wants(f"processes: {size}")]
        worlds = {size: _start(size, report.device.type, Path(name)) for size in sizes}
        try:
            for size, processes in worlds.items():
                with report.case(f"processes: {size}") as found:
                    found |= _wait(processes, Path(name) / f"{size}.json", report)
                    refused = found.get("error")
                    if refused and size == 2 and report.device.type == "cuda":
                        report.skip(f"processes: {size}", f"NCCL does not allow it: {refused}")
                        found["skipped"] = True
                    elif refused:
                        raise RuntimeError(refused)
                    else:
                        rows.append({"processes": size, **found})
                        if not found["difference"] <= TOLERANCE:
                            report.fail(f"processes: {size}: tolerance", f"{found['difference']:.3g}")
        finally:
            for processes in worlds.values():
                for process in processes:
                    _end(process)
    print_table(rows)


def _start(size: int, device: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.shards", device, str(folder / f"{size}.json")],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "NCCL_SOCKET_IFNAME": "lo",
            },
            stderr=(folder / f"{size}-{rank}.log").open("wb"),
            start_new_session=True,
        )
        for rank in range(size)
    ]


def _wait(processes: list[subprocess.Popen[bytes]], result: Path, report: Report) -> dict[str, Any]:
    """What the first process wrote, or why there is nothing."""
    until = time.time() + (60 if report.miniature else report.left - 2)
    while time.time() < until:
        codes = [process.poll() for process in processes]
        if result.exists():
            return dict(json.loads(result.read_text()))
        if any(codes):
            return {"error": _last_error(result)}
        time.sleep(0.1)
    return {"error": f"no answer in time; {_last_error(result)}"}


def _last_error(result: Path) -> str:
    logs = [log.read_text(errors="replace") for log in sorted(result.parent.glob(f"{result.stem}-*.log"))]
    lines = [line for log in logs for line in log.splitlines() if "rror" in line or "uplicate" in line]
    return " | ".join(lines[-3:])[:600] or "no message"


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
