"""The clusters that tests ask for: `api` needs no root and starts in seconds, `cluster` runs pods."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Kubectl


@dataclass(frozen=True)
class GivenCluster:
    """The cluster that KUBECONFIG names; whether its audit log can be read, only its owner knows."""

    kubeconfig: Path
    audit_log: Path | None = None
    kubectl: Kubectl = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kubectl", Kubectl(self.kubeconfig))


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane | GivenCluster]:
    """An API server with its controllers and no nodes; one for each of xdist's workers."""
    if given := os.environ.get("KUBECONFIG"):
        yield GivenCluster(Path(given))
        return
    control_plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        yield control_plane.start()
    finally:
        control_plane.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two real nodes; for tests that run without xdist, or each of its workers has a cluster."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("nodes need root on Linux")
    running = Cluster().up()
    try:
        yield running
    finally:
        running.down()
