"""Nodes that exist in the API alone: kwok says of their pods what a kubelet would say, in no time and at no cost."""

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import Daemon, start, wait_for

_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8"}
# What happens to nodes and pods, as kwok ships it.
_STAGES = (("node", "initialize"), ("pod", "ready"), ("pod", "complete"), ("pod", "delete"))


def start_kwok(control_plane: ControlPlane, *nodes: str) -> Daemon:
    """Adds `nodes`, and a kwok that lets the pods on them run, and those of Jobs succeed; `stop` ends it."""
    stages = binaries.module("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
    kwok = start(
        "kwok",
        [
            binaries.build("kwok")["kwok"],
            f"--kubeconfig={control_plane.component_kubeconfig('kwok', 'kwok', 'system:masters')}",
            *(f"--config={stages / kind / 'fast' / f'{kind}-{stage}.yaml'}" for kind, stage in _STAGES),
            "--manage-nodes-with-label-selector=type=kwok",
            "--node-lease-duration-seconds=8",  # as in node.py
        ],
        control_plane.logs,
    )
    control_plane.kubectl.apply(*map(_node, nodes))
    for name in nodes:
        wait_for(lambda name=name: _ready(control_plane, name), f"{name} is ready", kwok)
    return kwok


def _node(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"type": "kwok", "kubernetes.io/hostname": name}},
        "status": {"capacity": _CAPACITY, "allocatable": _CAPACITY},
    }


def _ready(control_plane: ControlPlane, name: str) -> bool:
    conditions = control_plane.kubectl.get("node", name)["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
