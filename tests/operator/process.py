"""The operator as a process of its own, as a pod would run it."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dmdctl.local.local_runner import free_port

DEADLINE = 60.0


@dataclass
class Operator:
    """A running operator.

    Attributes:
        process: its process.
        port: where it answers.
        log: what it printed.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer; 0 where there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        _, text = self.get("/metrics")
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def wait_until_ready(self) -> None:
        until = time.monotonic() + DEADLINE
        while self.get("/readyz")[0] != 200:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it with this signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def operator(kubeconfig: Path, folder: Path, packages: tuple[Path, ...] = (), **settings: str) -> Iterator[Operator]:
    """An operator, ended with the context.

    Args:
        kubeconfig: where its cluster is.
        folder: for its log.
        packages: folders with another version's packages; none: this tree's.
        settings: `DMD_OPERATOR_*`, in lower case and without the prefix.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"operator-{port}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DMD_OPERATOR_")}
    environment |= {"KUBECONFIG": str(kubeconfig), "DMD_OPERATOR_PORT": str(port)}
    environment |= {f"DMD_OPERATOR_{name.upper()}": value for name, value in settings.items()}
    if packages:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, packages))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dmd_operator"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    running = Operator(process, port, log)
    try:
        running.wait_until_ready()
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
