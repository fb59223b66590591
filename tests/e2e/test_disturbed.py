"""Distillations in real pods, disturbed while they train: they complete, with the weights of an undisturbed run."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from tests.chart.helm import CHART, helm
from tests.e2e import disturbances
from tests.e2e.runs import (
    UPDATES,
    apply,
    attempts,
    checkpoint_of,
    disruptions,
    story,
    trains_on,
    uids_of_workers,
    wait_until_complete,
    workers,
)
from tests.e2e.stack import SYSTEM, TEAM, Stack, install
from tests.operator.live import eventually, status

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

OUTAGE_SECONDS = 60
"""What is tested is an outage of this length: nothing is waited for."""
STAGES_BEFORE = ["preflight: attempt 1", "prepare: attempt 1"]


def suspend_and_resume(stack: Stack, name: str) -> None:
    disturbances.set_suspend(stack, name, True)
    eventually(lambda: not workers(stack, name), "its pods are gone", 120)
    assert status(stack.kubectl, name, TEAM)["phase"] == "Suspended"
    disturbances.set_suspend(stack, name, False)


def delete_the_lease_and_a_service(stack: Stack, name: str) -> None:
    """Neither ends anything: workers know each other already, and one replica leads again."""
    chosen = random.Random(0)
    disturbances.delete_the_lease(stack, name, chosen)
    disturbances.delete_a_service(stack, name, chosen)


def delete_the_operators_pods(stack: Stack, name: str) -> None:
    stack.kubectl("delete", "pods", "-n", SYSTEM, "--all", timeout=120)


def restart_the_api_server(stack: Stack, name: str) -> None:
    stack.cluster.control_plane.restart_api_server(pause=5)


def keep_s3_away(stack: Stack, name: str) -> None:
    stack.s3_away = True
    time.sleep(OUTAGE_SECONDS)
    stack.s3_away = False


def upgrade_and_roll_back(stack: Stack, name: str) -> None:
    options = ("--namespace", SYSTEM, "--wait", "--timeout", "2m")
    told = {"kubeconfig": stack.cluster.kubeconfig}
    helm("upgrade", "dmd-operator", CHART, *options, "--reuse-values", "--set", "settings.stallMinutes=31", **told)
    helm("rollback", "dmd-operator", "1", *options, **told)


@contextmanager
def without_mlflow(stack: Stack) -> Iterator[None]:
    """An outage that lasts as long as the context does, and at least as long as outages are tested."""
    began = time.monotonic()
    stack.stop_mlflow()
    try:
        yield
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
    finally:
        stack.start_mlflow()


def test_all_that_a_cluster_does_to_a_run(stack: Stack, undisturbed: Future[str]) -> None:
    """One thing after the other, each while it trains; at last it ends with neither an operator nor MLflow there."""
    name = "disturbed"
    apply(stack, name)
    trains_on(stack, name)
    stack.s3_delay = 1.0
    try:
        suspend_and_resume(stack, name)
        trains_on(stack, name, past=checkpoint_of(stack, name))
        pods = uids_of_workers(stack, name, attempt=2)
        assert pods.keys() == {0, 1}
        for disturb in (
            delete_the_operators_pods,
            delete_the_lease_and_a_service,
            restart_the_api_server,
            keep_s3_away,
            upgrade_and_roll_back,
        ):
            disturb(stack, name)
            # By an operator that is there and sees it; what the one before wrote does not count.
            trains_on(stack, name, past=checkpoint_of(stack, name))
            assert uids_of_workers(stack, name, attempt=2) == pods, disturb
            assert attempts(stack, name) == [*STAGES_BEFORE, "distill: attempt 1", "distill: attempt 2"], disturb
    finally:
        stack.s3_delay = 0.0
    with without_mlflow(stack):
        helm("uninstall", "dmd-operator", "--namespace", SYSTEM, "--wait", kubeconfig=stack.cluster.kubeconfig)
        assert uids_of_workers(stack, name, attempt=2) == pods
        # Without an operator: deleted as ever, nothing waits for a finalizer.
        apply(stack, "unwatched")
        stack.kubectl("delete", "dmd", "unwatched", "-n", TEAM, "--timeout=20s")
        job = f"job/{name}-distill-2"
        stack.kubectl("wait", "--for=condition=Complete", job, "-n", TEAM, "--timeout=10m", timeout=620)
    install(stack)
    found = wait_until_complete(stack, name)
    assert found["failures"] == 0, story(stack, name)
    assert attempts(stack, name)[len(STAGES_BEFORE) :] == [
        "distill: attempt 1",
        "distill: attempt 2",
        "evaluate: attempt 1",
    ]
    assert stack.report(name)["generatorSha256"] == undisturbed.result(1200)
    from mlflow import MlflowClient

    losses = MlflowClient(stack.mlflow.url).get_metric_history(found["mlflowRun"], "loss/distribution_matching")
    assert max(point.step for point in losses) == UPDATES, "what MLflow missed was sent later"


def test_workers_that_are_killed_are_replaced(stack: Stack, undisturbed: Future[str]) -> None:
    """Worker 1, and then worker 0, which has the rendezvous and whose progress is told."""
    name = "killed"
    apply(stack, name)
    for attempt, index in enumerate((1, 0), start=1):
        trains_on(stack, name, past=checkpoint_of(stack, name))
        pod = workers(stack, name, attempt)[index]["metadata"]["name"]
        stack.kubectl("delete", "pod", pod, "-n", TEAM, "--grace-period=0", "--force")
        eventually(lambda n=attempt: f"distill: attempt {n + 1}" in attempts(stack, name), "the next attempt", 120)
        told = disruptions(stack, name)
        assert len(told) == attempt, story(stack, name)
        assert "going on from step" in told[-1]
        assert f"of {UPDATES}" in told[-1]
    found = wait_until_complete(stack, name)
    assert found["failures"] == 0, story(stack, name)
    assert attempts(stack, name) == [
        *STAGES_BEFORE,
        *(f"distill: attempt {n}" for n in (1, 2, 3)),
        "evaluate: attempt 1",
    ]
    assert stack.report(name)["generatorSha256"] == undisturbed.result(1200)


def test_the_operators_pods_are_ready(stack: Stack) -> None:
    def ready() -> bool:
        pods = stack.kubectl.get("pods", "-n", SYSTEM)["items"]
        return len(pods) == 2 and all(p["status"]["containerStatuses"][0]["ready"] for p in pods)

    eventually(ready, "two ready replicas")
