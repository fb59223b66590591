"""A release's life beside work in flight: upgraded, uninstalled and installed again while pods train."""

import pytest

from tests.chart.helm import CHART, helm
from tests.e2e.runs import apply, in_the_middle, wait_until_complete, workers
from tests.e2e.stack import SYSTEM, TEAM, Stack, install
from tests.operator import live
from tests.operator.live import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_upgraded_and_rolled_back_while_it_runs(stack: Stack, undisturbed: str) -> None:
    apply(stack, "upgraded")
    in_the_middle(stack, "upgraded")
    pods = {index: pod["metadata"]["uid"] for index, pod in workers(stack, "upgraded").items()}
    told = {"kubeconfig": stack.cluster.kubeconfig}
    options = ("--namespace", SYSTEM, "--wait", "--timeout", "2m")
    helm("upgrade", "dmd-operator", CHART, *options, "--reuse-values", "--set", "settings.stallMinutes=31", **told)
    helm("rollback", "dmd-operator", "1", *options, **told)
    assert {index: pod["metadata"]["uid"] for index, pod in workers(stack, "upgraded").items()} == pods
    wait_until_complete(stack, "upgraded")
    assert stack.report("upgraded")["generatorSha256"] == undisturbed


def test_uninstalled_while_it_runs_and_installed_again(stack: Stack, undisturbed: str) -> None:
    apply(stack, "left-alone")
    in_the_middle(stack, "left-alone")
    pods = {index: pod["metadata"]["uid"] for index, pod in workers(stack, "left-alone").items()}
    told = {"kubeconfig": stack.cluster.kubeconfig}
    helm("uninstall", "dmd-operator", "--namespace", SYSTEM, "--wait", **told)
    assert {index: pod["metadata"]["uid"] for index, pod in workers(stack, "left-alone").items()} == pods
    # Without an operator: deleted as ever, nothing waits for a finalizer.
    apply(stack, "unwatched")
    stack.kubectl("delete", "dmd", "unwatched", "-n", TEAM, "--timeout=20s")
    condition = "--for=condition=Complete"
    stack.kubectl("wait", condition, "job/left-alone-distill-1", "-n", TEAM, "--timeout=3m", timeout=200)
    install(stack)
    found = wait_until_complete(stack, "left-alone")
    assert stack.report("left-alone")["generatorSha256"] == undisturbed
    assert found["failures"] == 0
    created = [note for reason, note in live.events(stack.kubectl, "left-alone", TEAM) if reason == "AttemptCreated"]
    assert sorted(created) == sorted(f"{stage}: attempt 1" for stage in ("preflight", "prepare", "distill", "evaluate"))


def test_the_operators_pods_are_ready(stack: Stack) -> None:
    def ready() -> bool:
        pods = stack.kubectl.get("pods", "-n", SYSTEM)["items"]
        return len(pods) == 2 and all(p["status"]["containerStatuses"][0]["ready"] for p in pods)

    eventually(ready, "two ready replicas")
