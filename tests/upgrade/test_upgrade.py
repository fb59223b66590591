"""An installation of an earlier commit is upgraded to this tree and rolled back, with a run alive in every phase."""

import asyncio
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from dmd_api.labels import CONTAINER, DISTILLATION, STAGE
from dmd_api.runtime import StageError, StageResult
from dmd_api.stages import Stage
from tests.chart.helm import CHART, RELEASE, helm
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Kubectl
from tests.operator import live
from tests.operator.live import eventually, is_true, manifest, status
from tests.operator.process import Operator, operator
from tests.operator.simulated import Pods, simulated_pods, succeed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SYSTEM, TEAM = "upgrade-system", "upgrade-team"
DEFAULTS = {"storage": {"uri": "s3://bucket/runs"}}
"""What the run that is pending waits for: it names no storage, and at first the operator has no default either."""
HELD = {"preflight": "Preflight", "prepare": "Preparing", "distill": "Distilling", "evaluate": "Evaluating"}
"""The phase of each run that stays in the stage it is named after."""
PHASES = {**HELD, "suspended": "Suspended", "succeeded": "Complete", "failed": "Failed", "pending": "Pending"}
LOOKS_EACH = 2
"""Looks at each run after which an operator has had its say: it acts at the first, if at all."""
KEPT = (
    "phase", "stage", "attempt", "endedAttempt", "nextAttemptTime", "retries", "failures", "startTime", "activeSince",
    "activeSeconds", "completionTime", "modelVersion", "modelUri", "resolved",
)  # fmt: skip
"""What decisions rest on, and what a run has come to. Its progress is whatever rank 0 answers."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the earlier installation; see make.sh."""
    (archive,) = Path(__file__).parent.glob("installed-*.zip")
    folder = tmp_path_factory.mktemp(archive.stem)
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane for this module alone: no other test may see an earlier CRD."""
    control_plane = ControlPlane(tmp_path_factory.mktemp("upgraded"))
    try:
        yield control_plane.start()
    finally:
        control_plane.stop()


@pytest.fixture(scope="module")
def pods(server: ControlPlane) -> Iterator[Pods]:
    """The kubelet's part: a run named after a stage stays in it until `finish`, `failed` fails as it distils."""
    stop, playing = Event(), []

    def ends(pod: dict[str, Any]) -> tuple[int, StageResult] | None:
        name, stage = (pod["metadata"]["labels"][label] for label in (DISTILLATION, STAGE))
        if name == "failed" and stage == Stage.DISTILL:
            error = StageError(reason="BadInput", message="spec.training: too much", exit_code=2)
            return 2, StageResult(stage=Stage(stage), error=error)
        held = Stage.DISTILL if name in {"suspended", "newer"} else name
        return None if stage == held else succeed(pod)

    async def play() -> None:
        async with simulated_pods(str(server.kubeconfig), ends) as pods:
            playing.append(pods)
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(asyncio.run, play())
        yield eventually(lambda: playing and playing[0], "pods are played")
        stop.set()
        future.result(20)


def service_account(server: ControlPlane, folder: Path) -> Path:
    """A kubeconfig with the rights that the chart gives the operator, and no others."""
    token = server.kubectl("create", "token", RELEASE, "-n", SYSTEM).strip()
    kubeconfig = folder / "operator.kubeconfig"
    kubeconfig.write_text(server.kubeconfig.read_text())
    at = ("config", "--kubeconfig", str(kubeconfig))
    server.kubectl(*at, "set-credentials", "operator", f"--token={token}")
    server.kubectl(*at, "set-context", "--current", "--user=operator")
    return kubeconfig


@contextmanager
def running(server: ControlPlane, folder: Path, *packages: Path, **settings: str) -> Iterator[Operator]:
    """An operator with the chart's rights, that leaves no error behind."""
    kubeconfig = service_account(server, folder)
    with operator(kubeconfig, folder, packages, progress_seconds="0.5", **settings) as process:
        yield process
        assert process.metric("dmd_operator_errors_total") == 0, process.log.read_text()[-3000:]


def has_looked(process: Operator) -> None:
    """Waits until the operator has had its say about every run."""
    before = process.metric("dmd_operator_looks_total")
    enough = before + LOOKS_EACH * len(PHASES)
    eventually(lambda: process.metric("dmd_operator_looks_total") >= enough, "it looks at all runs")


def all_statuses(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    found = kubectl.get("dmd", "--all-namespaces")["items"]
    return {resource["metadata"]["name"]: resource.get("status", {}) for resource in found}


def jobs(kubectl: Kubectl) -> dict[str, str]:
    """The uids of all Jobs by name."""
    found = kubectl.get("jobs", "--all-namespaces")["items"]
    return {job["metadata"]["name"]: job["metadata"]["uid"] for job in found}


def remembered(found: dict[str, Any]) -> dict[str, Any]:
    """`KEPT` of a status, and its conditions without their words, which versions may choose otherwise.

    Versions after 377f436 write whole seconds.
    """
    marks = {c["type"]: (c["status"], c["lastTransitionTime"]) for c in found["conditions"] if c["type"] != "Healthy"}
    kept = {**{field: found.get(field) for field in KEPT}, "conditions": marks}
    whole: dict[str, Any] = json.loads(re.sub(r"(:\d\d)\.\d+Z", r"\1Z", json.dumps(kept)))
    return whole


def finish(kubectl: Kubectl, name: str) -> None:
    """Ends the pods of the stage that a run is held in, as its trainer would."""
    for pod in kubectl.get("pods", "-n", TEAM, "-l", f"{DISTILLATION}={name}")["items"]:
        if pod["status"]["phase"] != "Running":
            continue
        code, result = succeed(pod)
        terminated = {"exitCode": code, "reason": "Completed", "message": result.to_termination_message()}
        container = pod["status"]["containerStatuses"][0] | {"name": CONTAINER, "state": {"terminated": terminated}}
        patch = json.dumps({"status": {"phase": "Succeeded", "containerStatuses": [container]}})
        kubectl(
            "patch", "pod", pod["metadata"]["name"], "-n", TEAM, "--subresource=status", "--type=merge", "-p", patch
        )


def suspend(kubectl: Kubectl, name: str, value: bool) -> None:
    kubectl("patch", "dmd", name, "-n", TEAM, "--type=merge", "-p", json.dumps({"spec": {"suspend": value}}))


def is_in(kubectl: Kubectl, name: str, phase: str) -> Callable[[], bool]:
    return lambda: all_statuses(kubectl).get(name, {}).get("phase") == phase


def test_runs_of_every_phase_outlive_an_upgrade_and_a_rollback(
    server: ControlPlane, pods: Pods, earlier: Path, tmp_path: Path
) -> None:
    kubectl, told = server.kubectl, {"kubeconfig": server.kubeconfig}
    old = (earlier / "crds", earlier / "operator")
    options = ("--namespace", SYSTEM, "--set", "replicaCount=0")
    for namespace in (SYSTEM, TEAM):
        live.make_namespace(kubectl, namespace)
    helm("install", RELEASE, earlier / "charts" / "dmd-operator", *options, **told)
    kubectl("wait", "--for=condition=Established", "crd/dmddistillations.dmd-operator.io", "--timeout=60s")

    with running(server, tmp_path, *old) as process:
        manifests = {name: manifest(name, TEAM, maxRestarts=0) for name in PHASES}
        del manifests["pending"]["spec"]["storage"]
        kubectl.apply(*manifests.values())
        eventually(is_in(kubectl, "suspended", "Distilling"), "it distils")
        suspend(kubectl, "suspended", True)
        for name, phase in PHASES.items():
            eventually(is_in(kubectl, name, phase), f"{name} is {phase}")
        has_looked(process)
    before, started = all_statuses(kubectl), jobs(kubectl)

    helm("upgrade", RELEASE, CHART, *options, **told)
    with running(server, tmp_path) as process:
        has_looked(process)
        upgraded = all_statuses(kubectl)
        for name in PHASES:
            assert remembered(upgraded[name]) == remembered(before[name]), name
        assert jobs(kubectl) == started
        # Some go on now, so that what this version writes is what the earlier one finds.
        finish(kubectl, "prepare")
        suspend(kubectl, "suspended", False)
        kubectl.apply(manifest("newer", TEAM, metadata={"labels": {"cost-centre": "42"}}))
        eventually(is_in(kubectl, "prepare", "Complete"), "what was prepared goes on to its end")
        for name in ("suspended", "newer"):
            eventually(is_in(kubectl, name, "Distilling"), f"{name} distils")
        has_looked(process)
    between, started = all_statuses(kubectl), jobs(kubectl)

    helm("rollback", RELEASE, "1", "--namespace", SYSTEM, **told)
    with running(server, tmp_path, *old, defaults=json.dumps(DEFAULTS)) as process:
        has_looked(process)
        eventually(is_in(kubectl, "pending", "Complete"), "the operator's default reaches what waited for it")
        rolled_back = all_statuses(kubectl)
        for name in between.keys() - {"pending"}:
            assert remembered(rolled_back[name]) == remembered(between[name]), name
        assert started.items() <= (now := jobs(kubectl)).items()
        assert {name.rpartition("-")[0].rpartition("-")[0] for name in now.keys() - started.keys()} == {"pending"}
        for name in ("preflight", "distill", "evaluate", "suspended", "newer"):
            finish(kubectl, name)
        for name in between.keys() - {"failed"}:
            eventually(is_in(kubectl, name, "Complete"), f"{name} completes")
    for name, found in all_statuses(kubectl).items():
        assert found["failures"] == 0, name
        assert is_true(found, "Registered") == (name != "failed"), name
    assert not {attempt for attempt, count in pods.counts.items() if count > 1}
    attempts = {(name, stage): attempt for _, name, stage, attempt in sorted(pods.counts)}
    assert {key for key, attempt in attempts.items() if attempt > 1} == {("suspended", "distill")}
    assert remembered(status(kubectl, "failed", TEAM)) == remembered(before["failed"])
