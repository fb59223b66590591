"""The test cluster does what a cluster does, and leaves nothing behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cgroups, images, owners
from tests.cluster.cluster import FOLDER, Cluster, owner, sweep
from tests.cluster.control_plane import DOMAIN, ControlPlane
from tests.cluster.fake_nodes import start_kwok
from tests.cluster.fixtures import GivenCluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import ClusterError, call, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
NAMESPACE = "web"


@pytest.fixture(scope="module")
def web(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A restricted namespace with a pod on each node, each serving a folder of this machine, behind two Services."""
    cluster.load_image(images.base_archive())
    folder = tmp_path_factory.mktemp("volume")
    folder.chmod(0o755)
    (folder / "greeting").write_text("hello from this machine")
    kubectl = cluster.kubectl
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}},
        volume(folder),
        claim(),
        service("web", headless=True),
        service("balanced", headless=False),
        *(pod(f"web-{index}", f"node-{index + 1}") for index in range(2)),
    )
    kubectl("wait", f"--namespace={NAMESPACE}", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
    yield kubectl
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_both_nodes_are_ready(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node["status"] for node in cluster.kubectl.get("nodes")["items"]}
    assert nodes.keys() == {"node-1", "node-2"}
    for status in nodes.values():
        assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"
        assert status["allocatable"].keys() >= {"cpu", "memory", "ephemeral-storage"}


def test_pods_reach_each_other_by_names_of_pods_and_services(web: Kubectl) -> None:
    for index in range(2):
        other = f"http://web-{1 - index}.web.{NAMESPACE}.svc:8080/greeting"
        assert fetch(web, f"web-{index}", other) == "hello from this machine"
        assert fetch(web, f"web-{index}", other.replace(".svc:", f".svc.{DOMAIN}:")) == "hello from this machine"
        assert fetch(web, f"web-{index}", "http://balanced:8080/greeting") == "hello from this machine"


def test_pods_reach_the_api_server_and_nothing_outside(web: Kubectl) -> None:
    assert fetch(web, "web-0", "https://kubernetes.default.svc/version").startswith("{")
    with pytest.raises(ClusterError, match=r"unreachable|refused|timed out"):
        fetch(web, "web-0", "http://198.51.100.1/")
    with pytest.raises(ClusterError, match=r"resolution|not known"):
        fetch(web, "web-0", "http://example.org/")


def test_logs_and_exec_work_on_both_nodes(web: Kubectl) -> None:
    for index in range(2):
        assert fetch(web, f"web-{index}", "http://localhost:8080/greeting") == "hello from this machine"
        wait_for(
            lambda name=f"web-{index}": "GET /greeting" in web("logs", f"--namespace={NAMESPACE}", name),
            "the request is in the pod's log",
            deadline=20,
        )


def test_a_volume_of_the_machine_is_read_by_a_user_who_is_not_root(web: Kubectl) -> None:
    assert execute(web, "web-0", "id", "-u").strip() == "65534"
    assert execute(web, "web-0", "cat", "/data/greeting") == "hello from this machine"


def test_a_restricted_namespace_refuses_what_is_not(web: Kubectl) -> None:
    privileged = pod("root", "node-1")
    privileged["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(ClusterError, match='violates PodSecurity "restricted'):
        web.apply(privileged)


def test_the_audit_log_tells_who_asked_for_what(web: Kubectl, cluster: Cluster) -> None:
    entries = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    made = [entry for entry in entries if entry["verb"] in ("create", "patch") and "web-0" in entry["requestURI"]]
    assert any(entry["user"]["username"] == "system:node:node-1" for entry in made)


def test_pods_reach_a_server_of_the_tests(web: Kubectl, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a test")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: SimpleHTTPRequestHandler(*arguments, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = cluster.expose(server.server_port)
        assert fetch(web, "web-1", f"http://{address}/file") == "from a test"
    finally:
        server.shutdown()
        server.server_close()


def test_this_machine_reaches_a_service(web: Kubectl, cluster: Cluster) -> None:
    service_address = web.get("service", f"--namespace={NAMESPACE}", "balanced")["spec"]["clusterIP"]
    address = cluster.reach(service_address, 8080)
    assert call(["curl", "--silent", "--noproxy", "*", f"http://{address}/greeting"]) == "hello from this machine"


def test_two_clusters_run_side_by_side_and_down_leaves_nothing(cluster: Cluster) -> None:
    before = machine()
    second = Cluster(nodes=1).up()
    try:
        second.kubectl.apply(
            pod("alone", "node-1", image="docker.io/local/pause:1", volumes=False, namespace="default")
        )
        second.kubectl("wait", "--for=condition=Ready", "pod/alone", "--timeout=60s")
        assert len(cluster.kubectl.get("nodes")["items"]) == 2
        running = identities(second.folder)
        inside = namespaces(running)
        assert len(inside) >= 6  # two of networks, one of processes, one of mounts, and the pod's
    finally:
        second.down()
    assert not [process for process in running if owners.alive(process)]
    assert not inside & namespaces([owners.identity(int(path.name)) for path in Path("/proc").glob("[0-9]*")])
    assert not second.folder.exists()
    assert not cgroups.exists(second.name)
    assert machine() == before


@pytest.mark.nodes
@pytest.mark.skipif(os.geteuid() != 0, reason="nodes need root")
@pytest.mark.parametrize("moment", ["control-plane/logs/etcd.log", "node-1/logs/kubelet.log", "kubeconfig"])
def test_what_an_interrupted_run_left_is_swept(moment: str) -> None:
    before = machine()
    script = "import time; from tests.cluster.cluster import Cluster; Cluster(nodes=1).up(); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        own = owners.identity(process.pid)
        wait_for(lambda: [f for f in FOLDER.glob("dmd-*") if owner(f) == own and (f / moment).exists()], moment)
        (folder,) = (f for f in FOLDER.glob("dmd-*") if owner(f) == own)
        running = identities(folder)
        assert running
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    sweep()  # or another test run was faster
    assert not [identity for identity in running if owners.alive(identity)]
    assert not folder.exists()
    assert not cgroups.exists(folder.name)
    assert machine() == before


def test_the_api_server_alone_restarts_without_root(api: ControlPlane | GivenCluster) -> None:
    if not isinstance(api, ControlPlane):
        pytest.skip("KUBECONFIG names a cluster that is not ours to restart")
    api.kubectl("create", "configmap", "kept")
    api.restart_api_server()
    api.kubectl("delete", "configmap", "kept")  # fails if there is none


def test_pods_on_nodes_that_are_only_in_the_api_run_and_their_job_succeeds(api: ControlPlane | GivenCluster) -> None:
    if not isinstance(api, ControlPlane):
        pytest.skip("KUBECONFIG names a cluster that is not ours to add nodes to")
    kwok = start_kwok(api, "fake-1")
    try:
        api.kubectl("create", "job", "done-at-once", "--image=docker.io/local/none:1")
        api.kubectl("wait", "--for=condition=Complete", "job/done-at-once", "--timeout=60s")
    finally:
        kwok.stop()
        api.kubectl("delete", "job/done-at-once", "node/fake-1", "--ignore-not-found")


def pod(name: str, node: str, image: str = "", volumes: bool = True, namespace: str = NAMESPACE) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "main",
        "image": image or images.base_name(),
        "imagePullPolicy": "Never",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec: dict[str, Any] = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if volumes:
        container["command"] = ["python3", "-u", "-m", "http.server", "--directory=/data", "8080"]
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data", "readOnly": True}]
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
        spec |= {"hostname": name, "subdomain": "web"}
        spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    metadata = {"name": name, "namespace": namespace, "labels": {"app": "web"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def service(name: str, headless: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"selector": {"app": "web"}, "ports": [{"port": 8080}]}
    if headless:
        spec["clusterIP"] = "None"
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def volume(folder: Path) -> dict[str, Any]:
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "hostPath": {"path": str(folder)},
        "storageClassName": "",
        "claimRef": {"name": "data", "namespace": NAMESPACE},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "web-data"}, "spec": spec}


def claim() -> dict[str, Any]:
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "",
        "volumeName": "web-data",
    }
    metadata = {"name": "data", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def execute(kubectl: Kubectl, name: str, *command: str) -> str:
    return kubectl("exec", f"--namespace={NAMESPACE}", name, "--", *command)


def fetch(kubectl: Kubectl, name: str, url: str) -> str:
    """What a pod gets from `url`; certificates are not looked at."""
    script = "import ssl, sys, urllib.request as r\n"
    script += (
        f"sys.stdout.write(r.urlopen({url!r}, timeout=20, context=ssl._create_unverified_context()).read().decode())"
    )
    return execute(kubectl, name, "python3", "-c", script)


def identities(folder: Path) -> list[str]:
    """The processes of a cluster and all their descendants, among them what runs in its pods."""
    found = {owners.pid_of(text) for path in folder.rglob("*.pid") if owners.alive(text := path.read_text())}
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [identity for pid in found if (identity := owners.identity(pid))]


def namespaces(processes: list[str]) -> set[str]:
    """The namespaces that these processes are in and this one is not."""
    found = set()
    for process in processes:
        for kind in ("net", "mnt", "pid"):
            try:
                found.add(os.readlink(f"/proc/{owners.pid_of(process)}/ns/{kind}") if process else "")
            except OSError:
                continue
    return found - {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid")} - {""}


def machine() -> dict[str, str]:
    """What a cluster could leave in the machine's own namespaces."""
    commands = {
        "interfaces": "ip -oneline link",
        "routes": "ip route",
        "rules": "nft list ruleset",
        "mounts": f"grep -v {shlex.quote('/proc/sys/fs/binfmt_misc')} /proc/self/mounts",
        "namespaces": "ls /run/netns 2> /dev/null || true",
        "sysctls": "cat /proc/sys/vm/overcommit_memory /proc/sys/kernel/panic* /proc/sys/net/ipv4/ip_forward",
    }
    return {name: call(["sh", "-c", command]) for name, command in commands.items()}
