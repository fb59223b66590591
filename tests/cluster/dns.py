"""CoreDNS beside the control plane: names of Services, and of pods behind headless ones."""

from pathlib import Path

from tests.cluster import binaries
from tests.cluster.control_plane import DOMAIN, ControlPlane
from tests.cluster.namespaces import Namespace
from tests.cluster.network import GATEWAY
from tests.cluster.processes import Daemon, start

# Answers are as fresh as the API server's: a pod that starts looks for another that started a moment before.
_COREFILE = """
.:53 {{
  bind {address}
  errors
  ready {address}:8181
  kubernetes {domain} in-addr.arpa {{
    kubeconfig {kubeconfig}
    ttl 0
  }}
}}
"""


def start_dns(folder: Path, network: Namespace, control_plane: ControlPlane) -> Daemon:
    """Starts the DNS server of the cluster."""
    kubeconfig = control_plane.component_kubeconfig("coredns", "coredns", "system:masters")
    configuration = folder / "Corefile"
    configuration.write_text(_COREFILE.format(address=GATEWAY, domain=DOMAIN, kubeconfig=kubeconfig))
    program = binaries.build("coredns")["coredns"]
    return start("coredns", [program, "-conf", configuration], control_plane.logs, network.enter)
