"""A distillation in real pods, disturbed while it runs: it completes, with the weights of the undisturbed run."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.runs import UPDATES, apply, in_the_middle, story, wait_until_complete, workers
from tests.e2e.stack import SYSTEM, TEAM, Stack
from tests.operator import live
from tests.operator.live import eventually, is_true, status
from tests.servers import ACCESS_KEY, SECRET_KEY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


OUTAGE_SECONDS = 60
"""What is tested is an outage of this length: nothing is waited for."""


def kill(index: int) -> Callable[[Stack, str], None]:
    def disturb(stack: Stack, name: str) -> None:
        pod = workers(stack, name)[index]["metadata"]["name"]
        stack.kubectl("delete", "pod", pod, "-n", TEAM, "--grace-period=0", "--force")

    return disturb


def delete_the_operators_pods(stack: Stack, name: str) -> None:
    stack.kubectl("delete", "pods", "-n", SYSTEM, "--all", "--wait=false")


def restart_the_api_server(stack: Stack, name: str) -> None:
    stack.cluster.control_plane.restart_api_server(pause=5)


def keep_mlflow_away(stack: Stack, name: str) -> None:
    stack.stop_mlflow()
    time.sleep(OUTAGE_SECONDS)
    stack.start_mlflow()


def keep_s3_away(stack: Stack, name: str) -> None:
    stack.s3_away = True
    time.sleep(OUTAGE_SECONDS)
    stack.s3_away = False


def suspend_and_resume(stack: Stack, name: str) -> None:
    def set_suspend(value: bool) -> None:
        patch = json.dumps({"spec": {"suspend": value}})
        stack.kubectl("patch", "dmd", name, "-n", TEAM, "--type=merge", "-p", patch)

    set_suspend(True)
    eventually(lambda: not workers(stack, name), "its pods are gone", 120)
    assert status(stack.kubectl, name, TEAM)["phase"] == "Suspended"
    set_suspend(False)


@pytest.mark.parametrize(
    ("name", "disturb", "attempts"),
    [
        ("worker-1-killed", kill(1), 2),
        ("worker-0-killed", kill(0), 2),
        ("operator-deleted", delete_the_operators_pods, 1),
        ("api-restarted", restart_the_api_server, 1),
        ("mlflow-away", keep_mlflow_away, 1),
        ("s3-away", keep_s3_away, 1),
        ("suspended", suspend_and_resume, 2),
    ],
)
def test_it_completes_with_the_same_weights(
    stack: Stack, undisturbed: str, name: str, disturb: Callable[[Stack, str], None], attempts: int
) -> None:
    apply(stack, name)
    in_the_middle(stack, name)
    disturb(stack, name)
    found = wait_until_complete(stack, name)
    assert stack.report(name)["generatorSha256"] == undisturbed
    assert found["failures"] == 0, story(stack, name)
    created = [note for reason, note in live.events(stack.kubectl, name, TEAM) if reason == "AttemptCreated"]
    assert f"distill: attempt {attempts}" in created, story(stack, name)
    assert f"distill: attempt {attempts + 1}" not in created, story(stack, name)
    if attempts > 1 and name != "suspended":
        told = next(note for reason, note in live.events(stack.kubectl, name, TEAM) if reason == "Disrupted")
        assert "going on from step" in told
        assert f"of {UPDATES}" in told


@pytest.fixture
def a_lost_node(stack: Stack) -> Iterator[Callable[[], None]]:
    """Stops the kubelet of the second node; started again in the end."""
    node = stack.cluster.nodes[1]
    yield node.stop_kubelet
    node.start_kubelet()
    ready = '{.status.conditions[?(@.type=="Ready")].status}=True'
    stack.kubectl("wait", f"--for=jsonpath={ready}", "node/node-2", "--timeout=120s")


def test_a_lost_node_is_left(stack: Stack, undisturbed: str, a_lost_node: Callable[[], None]) -> None:
    """Longer than the toleration, and than the grace of the pods that nobody can end."""
    name = "node-lost"
    apply(stack, name)
    in_the_middle(stack, name)
    nodes = {pod["spec"]["nodeName"] for pod in workers(stack, name).values()}
    assert "node-2" in nodes, "its workers are spread over the nodes"
    a_lost_node()
    found = wait_until_complete(stack, name)
    assert stack.report(name)["generatorSha256"] == undisturbed
    assert found["failures"] == 0, story(stack, name)
    told = next(note for reason, note in live.events(stack.kubectl, name, TEAM) if reason == "Disrupted")
    assert "node unreachable" in told
    assert "going on from step" in told


def test_a_missing_secret_is_found_before_anything_runs_and_heals(stack: Stack) -> None:
    storage = {
        "uri": "s3://models/runs",
        "endpointUrl": stack.pod_s3_url,
        "credentialsSecretRef": {"name": "forgotten"},
    }
    apply(stack, "secret-missing", storage=storage)
    found = _preflights_finding(stack, "secret-missing", 'secret "forgotten" not found')
    assert "create the Secret" in found["message"]
    secret = stack.kubectl.get("secret", "s3", "-n", TEAM)
    metadata = {"name": "forgotten", "namespace": TEAM}
    stack.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]})
    _passes_preflight(stack, "secret-missing")


def test_a_bucket_that_refuses_is_found_before_anything_runs_and_heals(stack: Stack) -> None:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": "mistyped"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mistyped", "namespace": TEAM}}
    stack.kubectl.apply({**secret, "stringData": keys})
    storage = {"uri": "s3://models/runs", "endpointUrl": stack.pod_s3_url}
    apply(stack, "bucket-refuses", storage={**storage, "credentialsSecretRef": {"name": "mistyped"}})
    found = _preflights_finding(stack, "bucket-refuses", "s3://models/runs")
    assert found["reason"] == "BadInput"
    assert "access denied" in found["message"]
    assert "mistyped" not in found["message"]
    stack.kubectl.apply({**secret, "stringData": {**keys, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}})
    _passes_preflight(stack, "bucket-refuses")


def _preflights_finding(stack: Stack, name: str, said: str) -> dict[str, Any]:
    def finding() -> dict[str, Any] | None:
        found = live.condition(status(stack.kubectl, name, TEAM), "PreflightPassed")
        return found if found.get("status") == "False" and said in found["message"] else None

    return eventually(finding, f"preflight's finding about {name}", 240)


def _passes_preflight(stack: Stack, name: str) -> None:
    """By itself, once the cause is gone; the rest of the run is none of this test's."""
    eventually(lambda: is_true(status(stack.kubectl, name, TEAM), "PreflightPassed"), f"{name} passes preflight", 240)
    stack.kubectl("delete", "dmd", name, "-n", TEAM)
