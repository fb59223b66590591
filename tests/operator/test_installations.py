"""Two installations that watch one namespace: each run is looked after by one of them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from dmd_api.labels import STAGE
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.live import eventually, status
from tests.operator.process import operator
from tests.operator.simulated import succeed
from tests.operator.test_live import Played, played

__all__ = ["played"]

NAMESPACE = "shared"


@pytest.fixture
def namespace(api: ControlPlane) -> Iterator[str]:
    live.make_namespace(api.kubectl, NAMESPACE)
    yield NAMESPACE
    api.kubectl("delete", "dmd", "--all", "-n", NAMESPACE, "--wait=false")


def test_a_run_has_one_owner_and_another_one_when_that_is_gone(
    api: ControlPlane, played: Played, namespace: str, tmp_path: Path
) -> None:
    go = Event()
    played.ends[namespace] = lambda pod: (
        None if pod["metadata"]["labels"][STAGE] == "distill" and not go.is_set() else succeed(pod)
    )
    leases = {"lease_namespace": "default", "lease_seconds": "3", "take_over_seconds": "5", "progress_seconds": "1"}
    leases["namespaces"] = json.dumps([namespace])  # and nothing that other tests have left
    with ExitStack() as stack:
        logs = {}
        for name in ("one", "other"):
            process = stack.enter_context(operator(api.kubeconfig, tmp_path / name, lease_name=name, **leases))
            logs[f"default/{name}"] = process
        api.kubectl.apply(live.manifest("run", namespace))
        eventually(lambda: status(api.kubectl, "run", namespace).get("phase") == "Distilling", "it distils")
        owner = status(api.kubectl, "run", namespace)["operator"]
        (other,) = logs.keys() - {owner}
        eventually(lambda: f"leaves this run to {owner}" in logs[other].log.read_text(), "the other one says so")
        assert "AttemptCreated" not in logs[other].log.read_text()
        logs[owner].stop()
        go.set()
        api.kubectl("delete", "pods", "--all", "-n", namespace, "--wait=false")
        live.wait_until_complete(api.kubectl, "run", namespace)
        assert status(api.kubectl, "run", namespace)["operator"] == other
        reasons = [reason for reason, _ in live.events(api.kubectl, "run", namespace)]
        assert (reasons.count("TakenOver"), reasons.count("OwnedByAnother")) == (1, 1)
