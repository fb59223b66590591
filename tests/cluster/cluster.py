"""A Kubernetes cluster of real nodes on this machine: brought up, taken down, and swept away after a crash."""

import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from tests.cluster import binaries, cgroups, images, owners
from tests.cluster.control_plane import LOOPBACK, ControlPlane
from tests.cluster.dns import start_dns
from tests.cluster.forward import Forward
from tests.cluster.kubectl import Kubectl
from tests.cluster.network import GATEWAY, connect, make_network
from tests.cluster.node import Node
from tests.cluster.processes import ClusterError, wait_for

FOLDER = binaries.CACHE / "clusters"
_OWNER = "owner"


class Cluster:
    """Two nodes and a control plane in namespaces of their own.

    It needs root and Linux, lives as long as the thread that brought it up, and is not seen from the machine's network:
    `kubeconfig` reaches it through a port of the loopback interface.

    Attributes:
        folder: all its state and logs.
        kubeconfig: the administrator's, for processes of this machine.
        kubectl: runs kubectl with it.
        audit_log: the API server's, one JSON object a line.
        nodes: its nodes, the first of them `node-1`.
        gateway: the address under which pods reach what `expose` exposes.
    """

    gateway = GATEWAY

    def __init__(self, nodes: int = 2) -> None:
        self.name = f"dmd-{secrets.token_hex(3)}"
        self.folder = FOLDER / self.name
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubectl = Kubectl(self.kubeconfig)
        self.nodes: list[Node] = []
        self._count = nodes
        self._forwards: list[Forward] = []

    @property
    def audit_log(self) -> Path:
        return self.control_plane.audit_log

    def up(self) -> "Cluster":
        """Brings it up and returns when its nodes are ready; if it fails, takes it down and raises ClusterError."""
        if os.geteuid():
            raise ClusterError("a cluster with nodes needs root: namespaces, mounts and control groups")
        binaries.install_debian_packages()
        binaries.build(*binaries.CLUSTER)
        pause = images.pause_archive()
        sweep()
        with _lock():
            self.folder.mkdir()
            (self.folder / _OWNER).write_text(owners.identity(os.getpid()))
        try:
            self._up(pause)
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Ends all its processes, and with them its namespaces; removes its control groups and its folder."""
        for forward in self._forwards:
            forward.close()
        for node in self.nodes:
            node.stop()
        for part in ("_dns", "control_plane", "network"):
            if running := getattr(self, part, None):
                running.close() if part == "network" else running.stop()
        _clear(self.folder)

    def load_image(self, archive: Path, nodes: Sequence[Node] | None = None) -> None:
        """Makes the image of `archive` known on every node; pods use it with `imagePullPolicy: Never`."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.import_image(archive), nodes or self.nodes))

    def expose(self, port: int) -> str:
        """HOST:PORT by which pods reach `port` of this machine's loopback interface."""
        forward = Forward((GATEWAY, 0), (LOOPBACK, port), listen_in=self.network.net)
        self._forwards.append(forward)
        return f"{GATEWAY}:{forward.port}"

    def reach(self, host: str, port: int) -> str:
        """HOST:PORT by which this machine reaches an address of the cluster: a pod's, a Service's or a node's."""
        forward = Forward((LOOPBACK, 0), (host, port), target_in=self.network.net)
        self._forwards.append(forward)
        return f"{LOOPBACK}:{forward.port}"

    def _up(self, pause: Path) -> None:
        self.network = make_network(self.folder / "logs", self._count)
        self.control_plane = ControlPlane(self.folder / "control-plane", GATEWAY, self.network.enter)
        self.control_plane.start()
        self._dns = start_dns(self.folder, self.network, self.control_plane)
        for index in range(1, self._count + 1):
            node = Node(index, self.name, self.folder, self.control_plane)
            self.nodes.append(node)
            connect(self.network, node.namespace, index, self._count)
            node.start(pause)
        server = f"https://{self.reach(GATEWAY, 6443)}"
        self.control_plane.authority.kubeconfig(self.kubeconfig, server, "admin", ("system:masters",))
        wait_for(self._ready, "all nodes are ready", self._dns, *(d for node in self.nodes for d in node.daemons))

    def _ready(self) -> bool:
        conditions = [
            condition["status"]
            for node in self.kubectl.get("nodes")["items"]
            for condition in node["status"]["conditions"]
            if condition["type"] == "Ready"
        ]
        return conditions == ["True"] * self._count


def owner(folder: Path) -> str:
    """The identity of the process that a cluster belongs to."""
    path = folder / _OWNER
    return path.read_text() if path.exists() else ""


def sweep() -> list[str]:
    """Removes what clusters left behind whose owner is gone, and returns their names; others are left alone."""
    with _lock():
        gone = [folder for folder in FOLDER.glob("dmd-*") if not owners.alive(owner(folder))]
        for folder in gone:
            _clear(folder)
    return [folder.name for folder in gone]


def _lock() -> FileLock:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / "lock")


def _clear(folder: Path) -> None:
    # Their parent's end has killed them, unless something stood between; their namespaces end with them.
    processes = [path.read_text() for path in folder.rglob("*.pid")]
    for process in processes:
        owners.send(process, signal.SIGKILL)
    wait_for(lambda: not any(map(owners.alive, processes)), f"the processes of {folder.name} ended", deadline=30)
    cgroups.remove(folder.name)
    shutil.rmtree(folder)
