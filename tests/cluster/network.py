"""The cluster's network: one namespace with a bridge, and a cable to each node's. There is no default route anywhere.

Addresses are the same in every cluster: they mean nothing outside its namespaces.
"""

from pathlib import Path

from tests.cluster.control_plane import SERVICES
from tests.cluster.namespaces import Namespace, network_namespace

GATEWAY = "10.250.0.1"
"""Where the control plane, DNS and whatever a test exposes are reached by nodes and pods."""
NODES = "10.250.0.0/24"
PODS = "10.244.0.0/16"
_FORWARD = "echo 1 > /proc/sys/net/ipv4/ip_forward"


def node_address(index: int) -> str:
    """The address of node `index`, from 1."""
    return f"10.250.0.{10 + index}"


def pod_range(index: int) -> str:
    """The addresses of the pods of node `index`, from 1."""
    return f"10.244.{index}.0/24"


def make_network(logs: Path, nodes: int) -> Namespace:
    """The namespace in which the control plane runs; it reaches `nodes` nodes, their pods and the Services."""
    namespace = network_namespace("network", logs)
    routes = [f"ip route add {pod_range(i)} via {node_address(i)}" for i in range(1, nodes + 1)]
    namespace.run(
        "\n".join(
            [
                "ip link add br0 type bridge",
                f"ip address add {GATEWAY}/24 dev br0",
                "ip link set br0 up",
                _FORWARD,
                *routes,
                # The API server calls webhooks at their Service's address: the first node's kube-proxy knows the way.
                f"ip route add {SERVICES} via {node_address(1)}",
            ]
        )
    )
    return namespace


def connect(network: Namespace, node: Namespace, index: int, nodes: int) -> None:
    """Connects node `index` with the bridge and so with all other nodes and their pods."""
    network.run(
        f"ip link add node-{index} type veth peer name eth0 netns {node.pid}\nip link set node-{index} master br0 up"
    )
    others = [i for i in range(1, nodes + 1) if i != index]
    node.run(
        "\n".join(
            [
                f"ip address add {node_address(index)}/24 dev eth0",
                "ip link set eth0 up",
                _FORWARD,
                *(f"ip route add {pod_range(i)} via {node_address(i)}" for i in others),
                # Looked up before kube-proxy's rules change the destination; nothing ever takes this route.
                f"ip route add {SERVICES} dev eth0",
            ]
        )
    )
