"""Prometheus' own judge of rules, out of Debian's package: nothing is installed, and no root is needed."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from tests.cluster.binaries import CACHE
from tests.cluster.processes import call


def promtool(*arguments: str | Path) -> str:
    """What promtool prints; raises ClusterError with its message if it fails."""
    return call([_program(), *arguments])


@cache
def _program() -> Path:
    if (installed := shutil.which("promtool")) is not None:
        return Path(installed)
    program = CACHE / "promtool"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(program.with_suffix(".lock")), tempfile.TemporaryDirectory() as folder:
        if not program.exists():
            download = f"cd {folder} && apt-get download prometheus"
            call(["sh", "-c", f"{download} || (apt-get update && {download})"])
            (package,) = Path(folder).glob("prometheus_*.deb")
            call(["dpkg-deb", "--extract", package, folder])
            shutil.move(Path(folder) / "usr" / "bin" / "promtool", program)
    return program
