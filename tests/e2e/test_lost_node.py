"""A node is lost: its run goes on elsewhere, and meanwhile the operator has eyes for others' mistakes."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.e2e.runs import apply, disruptions, story, trains_on, wait_until_complete, workers
from tests.e2e.stack import TEAM, Stack
from tests.operator.live import condition, eventually, is_true, status
from tests.servers import ACCESS_KEY, SECRET_KEY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

NAME = "node-lost"


@pytest.fixture(scope="module")
def without_its_node(stack: Stack) -> Iterator[None]:
    """A run that trained on two nodes, the kubelet of the second of them stopped; started again in the end."""
    apply(stack, NAME)
    trains_on(stack, NAME)
    nodes = {pod["spec"]["nodeName"] for pod in workers(stack, NAME).values()}
    assert "node-2" in nodes, "its workers are spread over the nodes"
    node = stack.cluster.nodes[1]
    node.stop_kubelet()
    # From here on nothing is scheduled there.
    stack.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{node.name}", "--timeout=60s")
    yield
    node.start_kubelet()
    stack.kubectl("wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=120s")


def test_missing_secrets_and_refusing_buckets_are_found_before_anything_runs_and_heal(
    stack: Stack, without_its_node: None
) -> None:
    """Both at the same time, while the lost node's pods are waited for."""
    storage = {"uri": "s3://models/runs", "endpointUrl": stack.pod_s3_url}
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": "mistyped"}
    stack.kubectl.apply(secret("mistyped", keys))
    apply(stack, "secret-missing", storage={**storage, "credentialsSecretRef": {"name": "forgotten"}})
    apply(stack, "bucket-refuses", storage={**storage, "credentialsSecretRef": {"name": "mistyped"}})

    found = preflights_finding(stack, "secret-missing", 'secret "forgotten" not found')
    assert "create the Secret" in found["message"]
    found = preflights_finding(stack, "bucket-refuses", "s3://models/runs")
    assert found["reason"] == "BadInput"
    assert "access denied" in found["message"]
    assert "mistyped" not in found["message"]

    for name in ("forgotten", "mistyped"):
        stack.kubectl.apply(secret(name, {**keys, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}))
    for name in ("secret-missing", "bucket-refuses"):
        passes_preflight(stack, name)


def test_a_lost_node_is_left(stack: Stack, undisturbed: Future[str], without_its_node: None) -> None:
    """Longer than the toleration, and than the grace of the pods that nobody can end."""
    found = wait_until_complete(stack, NAME)
    assert stack.report(NAME)["generatorSha256"] == undisturbed.result(1200)
    assert found["failures"] == 0, story(stack, NAME)
    told = disruptions(stack, NAME)
    assert "node unreachable" in told[0]
    assert "going on from step" in told[0]


def secret(name: str, content: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": TEAM},
        "stringData": content,
    }


def preflights_finding(stack: Stack, name: str, said: str) -> dict[str, Any]:
    def finding() -> dict[str, Any] | None:
        found = condition(status(stack.kubectl, name, TEAM), "PreflightPassed")
        return found if found.get("status") == "False" and said in found["message"] else None

    return eventually(finding, f"preflight's finding about {name}", 480)


def passes_preflight(stack: Stack, name: str) -> None:
    """By itself, once the cause is gone; the rest of the run is none of this test's."""
    eventually(lambda: is_true(status(stack.kubectl, name, TEAM), "PreflightPassed"), f"{name} passes preflight", 480)
    stack.kubectl("delete", "dmd", name, "-n", TEAM)
