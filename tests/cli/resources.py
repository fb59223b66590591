"""A DMDDistillation in a real API server whose status a test writes, as an operator would."""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.cli.test_cli import DMDCTL
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import GivenCluster

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "dmddistillations.dmd-operator.io.yaml"
PATIENCE = 60.0


def ensure_crd(api: ControlPlane | GivenCluster) -> None:
    api.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRD))
    api.kubectl("wait", "--for=condition=Established", "crd/dmddistillations.dmd-operator.io")


class Resource:
    """A run in the cluster.

    Attributes:
        name: its name.
        status: as last written.
    """

    def __init__(self, api: ControlPlane | GivenCluster, name: str, namespace: str = "default") -> None:
        self.api, self.name, self.namespace = api, name, namespace
        manifest = yaml.safe_load((ROOT / "examples" / "distill-digits.yaml").read_text())
        manifest["metadata"] = {"name": name, "namespace": namespace}
        api.kubectl("create", "--filename=-", text=yaml.safe_dump(manifest))
        found = api.kubectl.get("dmd", name, "--namespace", namespace)
        self.uid: str = found["metadata"]["uid"]
        self.status: dict[str, Any] = {}
        self._conditions: dict[str, dict[str, str]] = {}

    def write(self, *conditions: tuple[str, str, str, str], **fields: Any) -> None:
        """Merges into the status; a condition is its type, status, reason and message."""
        for kind, status, reason, message in conditions:
            self._conditions[kind] = {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": stamp(),
            }
        self.status |= {**fields, "conditions": list(self._conditions.values())}
        patch = json.dumps({"status": self.status})
        where = ("--namespace", self.namespace, "--subresource=status", "--type=merge")
        self.api.kubectl("patch", "dmd", self.name, *where, "--patch", patch)

    def tell(self, reason: str, note: str, kind: str = "Warning") -> None:
        """Writes an event of the resource, as the operator does."""
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self.name}-", "namespace": self.namespace},
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
            "type": kind,
            "reason": reason,
            "action": reason,
            "note": note,
            "reportingController": "dmd-operator.io/dmd-operator",
            "reportingInstance": "tests",
            "regarding": {
                "apiVersion": "dmd-operator.io/v1alpha1",
                "kind": "DMDDistillation",
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
            },
        }
        self.api.kubectl("create", "--filename=-", text=yaml.safe_dump(event))


class Command:
    """A `dmdctl` that runs, whose lines can be waited for."""

    def __init__(self, kubeconfig: Path, *arguments: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [str(DMDCTL), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(kubeconfig),
            # Where a shell runs tests in its background, they inherit that Ctrl-C is ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"{text!r} did not come:\n{self.output}"
            self.output += line
            if text in line:
                return

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its exit code; `output` is complete then."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while (line := self._lines.get()) is not None:
            self.output += line
        assert "Traceback" not in self.output, self.output
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


def environment(kubeconfig: Path | str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "KUBECONFIG": str(kubeconfig)}


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
