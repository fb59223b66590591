"""etcd, the API server, the controller manager and the scheduler, as processes of this machine; needs no root."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.cluster import binaries
from tests.cluster.certificates import Authority, signing_key
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import ClusterError, Daemon, start, wait_for

LOOPBACK = "127.0.0.1"
SERVICES = "10.96.0.0/16"
DOMAIN = "test.internal"
"""Of the cluster: not cluster.local, which nothing may rely on."""
FIRST_SERVICE = "10.96.0.1"
_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
_STARTS = 3
"""Ports are looked for before they are listened on: somebody may be faster, but hardly three times."""
# One line for each request, without its body: what the tests of permissions and of write amplification count.
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ControlPlane:
    """A Kubernetes control plane with RBAC, ServiceAccount tokens and an audit log.

    By default it listens on free loopback ports and needs no root. A cluster gives it an address that pods reach, and
    `enter`, the command line by which its processes enter the cluster's network namespace, where every port is free.

    Attributes:
        kubeconfig: the administrator's, for whoever reaches the control plane's address.
        kubectl: runs kubectl with it.
        audit_log: one JSON object a line, appended to before a request is answered.
    """

    def __init__(self, folder: Path, address: str = LOOPBACK, enter: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address = address
        self.logs = folder / "logs"
        self.audit_log = folder / "audit.log"
        self.kubeconfig = folder / "admin.kubeconfig"
        self.authority = Authority(folder / "certificates")
        self.kubectl = Kubectl(self.kubeconfig, enter)
        self._enter = enter
        self._daemons: dict[str, Daemon] = {}
        self._port = 0
        self._etcd_port = 0

    @property
    def server(self) -> str:
        """The API server's URL, where `address` is reached."""
        return f"https://{self.address}:{self._port}"

    def start(self) -> "ControlPlane":
        """Starts everything and returns when pods can be made; raises ClusterError, with a log's end, if it fails."""
        for attempt in range(_STARTS):
            self._port, self._etcd_port, peer_port = self._ports()
            try:
                self._start_etcd(peer_port)
                self._start_api_server()
                break
            except ClusterError:
                self.stop()
                if attempt + 1 == _STARTS:
                    raise
        self._start_controllers()
        return self

    def stop(self) -> None:
        """Ends all processes; the folder stays."""
        for daemon in reversed(self._daemons.values()):
            daemon.stop()
        self._daemons.clear()

    def restart_api_server(self, pause: float = 0.0) -> None:
        """Kills the API server and starts it again, on the same port; for `pause` seconds it is not there."""
        self._daemons["kube-apiserver"].stop()
        if pause:
            time.sleep(pause)
        self._start_api_server()

    def stop_scheduler(self) -> None:
        """Ends the scheduler: where pods are only played, it would say of each that no node fits."""
        self._daemons["kube-scheduler"].stop()

    def component_kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        """A kubeconfig for a component that reaches `address` itself."""
        return self.authority.kubeconfig(self.folder / f"{name}.kubeconfig", self.server, user, groups)

    def _ports(self) -> tuple[int, int, int]:
        if self._enter:
            return 6443, 2379, 2380
        with socket.socket() as api, socket.socket() as etcd, socket.socket() as peer:
            ports = []
            for candidate in (api, etcd, peer):
                candidate.bind((self.address, 0))
                ports.append(candidate.getsockname()[1])
        return ports[0], ports[1], ports[2]

    def _start(self, name: str, *options: str) -> Daemon:
        daemon = start(name, [binaries.build(name)[name], *options], self.logs, self._enter)
        self._daemons[name] = daemon
        return daemon

    def _start_etcd(self, peer_port: int) -> None:
        client, peer = f"http://{LOOPBACK}:{self._etcd_port}", f"http://{LOOPBACK}:{peer_port}"
        self._start(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nobody needs these data after a power cut
            "--log-level=warn",
        )

    def _start_api_server(self) -> None:
        certificates = self.authority.folder
        policy = self.folder / "audit-policy.yaml"
        tokens = certificates / "tokens.key"
        if not policy.exists():
            policy.write_text(yaml.safe_dump(_AUDIT))
            signing_key(tokens)
            self.authority.sign("server", "kube-apiserver", hosts=(*_NAMES, LOOPBACK, FIRST_SERVICE, self.address))
            self.authority.sign("kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",))
        self.authority.kubeconfig(self.kubeconfig, self.server, "admin", ("system:masters",))
        daemon = self._start(
            "kube-apiserver",
            f"--bind-address={self.address if self.address == LOOPBACK else '0.0.0.0'}",
            f"--advertise-address={self.address}",
            # No pod could use a loopback address, and the API refuses it.
            *(["--endpoint-reconciler-type=none"] if self.address == LOOPBACK else []),
            f"--secure-port={self._port}",
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_port}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={certificates / 'server.crt'}",
            f"--tls-private-key-file={certificates / 'server.key'}",
            f"--kubelet-client-certificate={certificates / 'kubelet-client.crt'}",
            f"--kubelet-client-key={certificates / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
            f"--service-account-key-file={tokens}",
            f"--service-account-signing-key-file={tokens}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
            "--allow-privileged",
            "--profiling=false",
        )
        wait_for(lambda: self.kubectl.answers("/readyz"), "the API server is ready", self._daemons["etcd"], daemon)

    def _start_controllers(self) -> None:
        manager = self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.component_kubeconfig('controller-manager', 'system:kube-controller-manager')}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.authority.folder / 'tokens.key'}",
            f"--root-ca-file={self.authority.certificate}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            # A lost node is noticed in a quarter of the usual time; see the lease's duration in node.py.
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=16s",
        )
        scheduler = self._start(
            "kube-scheduler",
            f"--kubeconfig={self.component_kubeconfig('scheduler', 'system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_for(lambda: self.kubectl.answers(account), "the default ServiceAccount exists", manager, scheduler)
