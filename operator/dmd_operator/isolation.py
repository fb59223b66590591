"""The NetworkPolicy of a run: its pods hear one another, and whoever reads their progress."""

from collections.abc import Sequence
from typing import Any

from dmd_api.apps import PROGRESS_PORT
from dmd_api.labels import DISTILLATION
from dmd_api.manifest import DMDDistillation
from dmd_operator.pods import Owner


def network_policy(manifest: DMDDistillation, owner: Owner, progress_from: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The policy, one for all attempts; it goes with the resource.

    The rendezvous and the collectives have no password, and who reaches them runs code in the trainers. All ports are
    open among the run's pods, since collectives take any. What goes out is not restricted: where storage, tracking and
    hubs are, nobody here knows.

    Args:
        manifest: the resource.
        owner: the resource.
        progress_from: who may reach the progress port, as peers of a NetworkPolicy.
    """
    run = manifest.metadata.name
    pods = {"matchLabels": {DISTILLATION: run}}
    labels = {DISTILLATION: run, "app.kubernetes.io/managed-by": "dmd-operator"}
    ingress: list[dict[str, Any]] = [{"from": [{"podSelector": pods}]}]
    if progress_from:  # an empty list would be everyone
        ingress.append({"from": list(progress_from), "ports": [{"port": PROGRESS_PORT, "protocol": "TCP"}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(manifest, f"dmd-{run}", labels),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress},
    }
