"""kubectl, as a user types it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries
from tests.cluster.processes import ClusterError, call


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig, run through `enter` where only a network namespace reaches the API server."""

    kubeconfig: Path
    enter: Sequence[str] = ()

    def __call__(self, *arguments: str, text: str | None = None, timeout: float = 120) -> str:
        """What it prints, given `text` on its standard input; raises ClusterError with its message if it fails."""
        return call([*self.enter, binaries.kubectl(), "--kubeconfig", self.kubeconfig, *arguments], text, timeout)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, parsed."""
        return json.loads(self("get", *arguments, "--output=json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Creates or changes `objects`."""
        self("apply", "--filename=-", text=yaml.safe_dump_all(objects))

    def answers(self, path: str) -> bool:
        """Whether a GET of the API's `path` succeeds."""
        try:
            self("get", "--raw", path, "--request-timeout=5s")
        except ClusterError:
            return False
        return True
