"""A node: a containerd, a kubelet and a kube-proxy in namespaces of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries, cgroups
from tests.cluster.control_plane import DOMAIN, SERVICES, ControlPlane
from tests.cluster.namespaces import machine_namespace
from tests.cluster.network import GATEWAY, NODES, PODS, node_address, pod_range
from tests.cluster.processes import Daemon, call, start, wait_for

PAUSE_IMAGE = "docker.io/local/pause:1"
_SOCKET = "/run/containerd/containerd.sock"
_PLUGINS = "io.containerd.cri.v1"


class Node:
    """A machine of the cluster, as far as Kubernetes can see.

    Attributes:
        name: as Kubernetes calls it.
        address: where its kubelet listens.
        namespace: its namespaces; ending them ends everything on it, as a power cut would.
    """

    def __init__(self, index: int, cluster: str, folder: Path, control_plane: ControlPlane) -> None:
        self.name = f"node-{index}"
        self.address = node_address(index)
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.logs = self.folder / "logs"
        self._group = f"{cluster}/{self.name}"
        self._index = index
        self._control_plane = control_plane
        self._daemons: dict[str, Daemon] = {}
        self.namespace = machine_namespace(self.name, self.folder, self.logs)

    def start(self, pause_image: Path) -> None:
        """Starts everything; the node is known to the API server then, though perhaps not ready yet."""
        cgroups.create(self._group)
        self._write("cni/10-pods.conflist", json.dumps(self._cni()))
        config = self._write("containerd.toml", self._containerd())
        containerd = self._start("containerd", binaries.build("containerd")["containerd"], f"--config={config}")
        wait_for(self._containerd_answers, f"containerd of {self.name} answers", containerd)
        self.import_image(pause_image)
        self.start_kubelet()
        proxy = self._write("kube-proxy.yaml", yaml.safe_dump(self._kube_proxy()))
        self._start("kube-proxy", binaries.build("kube-proxy")["kube-proxy"], f"--config={proxy}")

    def start_kubelet(self) -> None:
        """Starts the kubelet, as after `stop_kubelet`."""
        user = f"system:node:{self.name}"
        kubeconfig = self._control_plane.component_kubeconfig(self.name, user, "system:nodes")
        config = self._write("kubelet.yaml", yaml.safe_dump(self._kubelet()))
        self._start(
            "kubelet",
            binaries.build("kubelet")["kubelet"],
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet/pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )

    def stop_kubelet(self) -> None:
        """Kills the kubelet; its containers go on, and the API server hears no more from this node."""
        self._daemons["kubelet"].stop()

    def import_image(self, archive: Path) -> None:
        """Makes an image known to containerd under the names that it has in `archive`, an OCI or Docker archive."""
        self.ctr("images", "import", "--local", str(archive))

    def ctr(self, *arguments: str) -> str:
        """What containerd's own client prints, of what belongs to Kubernetes."""
        ctr = binaries.build("ctr")["ctr"]
        return call([*self.namespace.enter, ctr, f"--address={_SOCKET}", "--namespace=k8s.io", *arguments], timeout=300)

    def stop(self) -> None:
        """Ends everything that runs on it."""
        self.namespace.close()
        for daemon in self._daemons.values():
            daemon.stop()

    @property
    def daemons(self) -> list[Daemon]:
        """What runs on it, besides containers."""
        return list(self._daemons.values())

    def _containerd_answers(self) -> bool:
        return Path(f"/proc/{self.namespace.pid}/root{_SOCKET}").is_socket()

    def _start(self, name: str, *command: str | Path) -> Daemon:
        self._daemons[name] = start(name, command, self.logs, self.namespace.enter)
        return self._daemons[name]

    def _write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def _cni(self) -> dict[str, Any]:
        # Point to point: every packet is routed, and none needs the bridge netfilter module to be seen by kube-proxy.
        ranges = [[{"subnet": pod_range(self._index)}]]
        routes = [{"dst": network} for network in (PODS, SERVICES, NODES)]
        addresses = {"type": "host-local", "dataDir": "/run/cni", "ranges": ranges, "routes": routes}
        return {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipMasq": False, "ipam": addresses},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _containerd(self) -> str:
        shim = binaries.build("containerd-shim-runc-v2")["containerd-shim-runc-v2"]
        return f"""
version = 3
root = "{self.folder / "containerd"}"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{_SOCKET}"
[plugins."{_PLUGINS}.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."{_PLUGINS}.runtime"]
  restrict_oom_score_adj = true
  [plugins."{_PLUGINS}.runtime".cni]
    bin_dirs = ["{binaries.CNI}"]
    conf_dir = "{self.folder / "cni"}"
  [plugins."{_PLUGINS}.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{shim}"
    [plugins."{_PLUGINS}.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin")}"
"""

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._control_plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "clusterDNS": [GATEWAY],
            "clusterDomain": DOMAIN,
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "enforceNodeAllocatable": [],
            # The machine's disk is somebody else's: neither its filling up nor old images are the tests' affair.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "failCgroupV1": False,
            "failSwapOn": False,
            # A lost node is noticed in a quarter of the usual time; see the grace period in control_plane.py.
            "nodeLeaseDurationSeconds": 8,
            "nodeStatusUpdateFrequency": "4s",
            "oomScoreAdj": 0,
            "podLogsDir": str(self.folder / "pod-logs"),
            "resolvConf": "",
            "volumePluginDir": str(self.folder / "volume-plugins"),
        }

    def _kube_proxy(self) -> dict[str, Any]:
        kubeconfig = self._control_plane.component_kubeconfig(f"kube-proxy-{self.name}", "system:kube-proxy")
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": PODS,
            # The tables of connections belong to the whole machine: left as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
            "hostnameOverride": self.name,
            "mode": "nftables",
            "oomScoreAdj": 0,
        }
