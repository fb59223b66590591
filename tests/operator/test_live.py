"""The running operator against a real API server and Job controller; what pods do is written into their status."""

import asyncio
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from dmd_api.apps import PROGRESS_PORT
from dmd_api.labels import ATTEMPT, STAGE
from dmd_api.runtime import StageError, StageResult
from dmd_api.stages import Stage
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.live import condition, eventually, is_true, manifest, status
from tests.operator.process import Operator, operator
from tests.operator.simulated import Ends, simulated_pods, succeed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


class Played:
    """Pods that end as a test says, by its namespace."""

    def __init__(self) -> None:
        self.ends: dict[str, Ends] = {}

    def __call__(self, pod: dict[str, Any]) -> tuple[int, StageResult] | None:
        return self.ends.get(pod["metadata"]["namespace"], succeed)(pod)


@pytest.fixture(scope="module")
def played(api: ControlPlane) -> Iterator[Played]:
    live.install_crd(api.kubectl)
    ends, stop = Played(), Event()

    async def play() -> None:
        async with simulated_pods(str(api.kubeconfig), ends):
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as thread:
        playing = thread.submit(asyncio.run, play())
        yield ends
        stop.set()
        playing.result(20)


@pytest.fixture(scope="module")
def running(api: ControlPlane, played: Played, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with operator(
        api.kubeconfig, tmp_path_factory.mktemp("operator"), progress_seconds="1", figures_seconds="1"
    ) as process:
        yield process


@pytest.fixture
def namespace(api: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.removeprefix("test_").replace("_", "-").partition("[")[0][:50].rstrip("-")
    live.make_namespace(api.kubectl, name)
    yield name
    api.kubectl("delete", "dmd", "--all", "-n", name, "--wait=false")


def runs_on(pod: dict[str, Any]) -> None:
    """A pod that does not end by itself."""


def fails(stage: Stage, reason: str, message: str, code: int, attempts: int = 10_000) -> Ends:
    """The first `attempts` attempts at `stage` fail, all else succeeds."""

    def end(pod: dict[str, Any]) -> tuple[int, StageResult]:
        labels = pod["metadata"]["labels"]
        if labels[STAGE] != stage or int(labels[ATTEMPT]) > attempts:
            return succeed(pod)
        return code, StageResult(stage=stage, error=StageError(reason=reason, message=message, exit_code=code))

    return end


def phase(api: ControlPlane, namespace: str, name: str = "run") -> str:
    return status(api.kubectl, name, namespace).get("phase", "")


def refused(api: ControlPlane, namespace: str) -> dict[str, Any]:
    """The status of a run of which something is refused, empty until it is."""
    found = status(api.kubectl, "run", namespace)
    return found if condition(found, "Healthy").get("reason") == "Refused" else {}


def test_a_run_goes_through_all_stages(api: ControlPlane, running: Operator, namespace: str) -> None:
    api.kubectl.apply(manifest("run", namespace))
    live.wait_until_complete(api.kubectl, "run", namespace)
    found = status(api.kubectl, "run", namespace)
    for kind in ("PreflightPassed", "Prepared", "Distilled", "Evaluated", "GatesPassed", "Registered", "Complete"):
        assert is_true(found, kind), live.describe(found)
    assert found["modelVersion"] == "1"
    assert found["modelUri"] == "models:/run/1"
    reasons = [reason for reason, _ in live.events(api.kubectl, "run", namespace)]
    assert reasons.count("AttemptCreated") == 4
    assert "Complete" in reasons
    (row,) = api.kubectl("get", "dmd", "-n", namespace, "--no-headers").splitlines()
    assert row.split()[:2] == ["run", "Complete"]
    assert {job["metadata"]["name"] for job in api.kubectl.get("jobs", "-n", namespace)["items"]} == {
        f"run-{stage}-1" for stage in Stage
    }


def test_deleting_a_run_leaves_nothing(api: ControlPlane, running: Operator, played: Played, namespace: str) -> None:
    played.ends[namespace] = runs_on
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: api.kubectl.get("pods", "-n", namespace)["items"], "a pod")
    api.kubectl("delete", "dmd", "run", "-n", namespace, "--timeout=30s")
    eventually(lambda: not api.kubectl.get("jobs,pods,services", "-n", namespace)["items"], "no children")


def test_the_trainers_error_is_told_and_attempts_are_counted(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    played.ends[namespace] = fails(Stage.DISTILL, "InfrastructureUnavailable", "s3://bucket does not answer", 6)
    api.kubectl.apply(manifest("run", namespace, maxRestarts=0))
    found = eventually(
        lambda: (s := status(api.kubectl, "run", namespace)).get("phase") == "Failed" and s, "the run failed"
    )
    failed = condition(found, "Failed")
    assert failed["reason"] == "RestartsExhausted"
    assert "s3://bucket does not answer" in failed["message"]
    assert "raise maxRestarts" in failed["message"]
    # The cause is mended, one more restart is allowed: it goes on where it was.
    played.ends[namespace] = succeed
    patch = json.dumps({"spec": {"maxRestarts": 1}})
    api.kubectl("patch", "dmd", "run", "-n", namespace, "--type=merge", "-p", patch)
    live.wait_until_complete(api.kubectl, "run", namespace)
    created = [note for reason, note in live.events(api.kubectl, "run", namespace) if reason == "AttemptCreated"]
    assert created.count("preflight: attempt 1") == created.count("prepare: attempt 1") == 1
    assert "distill: attempt 2" in created


def test_bad_input_in_preflight_heals_by_itself(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    message = "spec.teacher.uri: there is nothing at s3://models/sd; check the URI"
    played.ends[namespace] = fails(Stage.PREFLIGHT, "BadInput", message, 2, attempts=1)
    api.kubectl.apply(manifest("run", namespace))
    found = eventually(
        lambda: (
            (c := condition(status(api.kubectl, "run", namespace), "PreflightPassed")).get("reason") == "BadInput" and c
        ),
        "preflight's finding",
    )
    assert found["status"] == "False"
    assert message in found["message"]
    live.wait_until_complete(api.kubectl, "run", namespace)


def test_suspending_ends_the_pods_and_resuming_goes_on(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    played.ends[namespace] = lambda pod: None if pod["metadata"]["labels"][STAGE] == "distill" else succeed(pod)
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: phase(api, namespace) == "Distilling", "it distils")
    _suspend(api, namespace, True)
    eventually(lambda: phase(api, namespace) == "Suspended", "it is suspended")
    jobs = "dmd-operator.io/stage=distill"
    eventually(lambda: not api.kubectl.get("jobs", "-n", namespace, "-l", jobs)["items"], "its Job is gone")
    played.ends[namespace] = succeed
    _suspend(api, namespace, False)
    live.wait_until_complete(api.kubectl, "run", namespace)
    assert not is_true(status(api.kubectl, "run", namespace), "Suspended")


def _suspend(api: ControlPlane, namespace: str, value: bool) -> None:
    api.kubectl("patch", "dmd", "run", "-n", namespace, "--type=merge", "-p", json.dumps({"spec": {"suspend": value}}))


def test_a_deleted_pod_ends_the_attempt_and_nothing_is_counted(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    played.ends[namespace] = lambda pod: (
        None
        if pod["metadata"]["labels"][STAGE] == "distill" and pod["metadata"]["labels"][ATTEMPT] == "1"
        else succeed(pod)
    )
    api.kubectl.apply(manifest("run", namespace))
    pods = "batch.kubernetes.io/job-name=run-distill-1,batch.kubernetes.io/job-completion-index=1"
    (pod,) = eventually(lambda: api.kubectl.get("pods", "-n", namespace, "-l", pods)["items"], "worker 1")
    eventually(
        lambda: api.kubectl.get("pod", pod["metadata"]["name"], "-n", namespace)["status"]["phase"] == "Running",
        "worker 1 runs",
    )
    api.kubectl("delete", "pod", pod["metadata"]["name"], "-n", namespace)
    live.wait_until_complete(api.kubectl, "run", namespace)
    found = status(api.kubectl, "run", namespace)
    assert found["failures"] == 0
    created = [note for reason, note in live.events(api.kubectl, "run", namespace) if reason == "AttemptCreated"]
    assert created.count("distill: attempt 2") == 1


def test_what_the_api_server_refuses_is_told_and_heals(api: ControlPlane, running: Operator, namespace: str) -> None:
    api.kubectl("create", "quota", "none", "--hard=count/jobs.batch=0", "-n", namespace)
    api.kubectl.apply(manifest("run", namespace))
    found = eventually(
        lambda: refused(api, namespace),
        "the refusal is told",
    )
    assert "exceeded quota" in condition(found, "Healthy")["message"]
    api.kubectl("delete", "quota", "none", "-n", namespace)
    live.wait_until_complete(api.kubectl, "run", namespace)
    assert status(api.kubectl, "run", namespace)["failures"] == 0


def test_a_pod_template_with_a_mistake_names_the_field(api: ControlPlane, running: Operator, namespace: str) -> None:
    template = {"spec": {"nodeSelectr": {"gpu": "h100"}}}
    api.kubectl.apply(manifest("run", namespace, workers={"nodes": 2, "podTemplate": template}))
    found = eventually(
        lambda: refused(api, namespace),
        "the refusal is told",
    )
    assert "nodeSelectr" in condition(found, "Healthy")["message"]


def test_the_time_to_live_deletes_the_resource(api: ControlPlane, running: Operator, namespace: str) -> None:
    api.kubectl.apply(manifest("run", namespace, ttlSecondsAfterFinished=1))
    eventually(lambda: not live.exists(api.kubectl, "dmd", "run", namespace), "the resource is deleted")
    eventually(lambda: not api.kubectl.get("jobs", "-n", namespace)["items"], "its children too")


def test_the_deadline_fails_the_run(api: ControlPlane, running: Operator, played: Played, namespace: str) -> None:
    played.ends[namespace] = runs_on
    api.kubectl.apply(manifest("run", namespace, activeDeadlineSeconds=2))
    found = eventually(lambda: (s := status(api.kubectl, "run", namespace)).get("phase") == "Failed" and s, "it failed")
    assert condition(found, "Failed")["reason"] == "DeadlineExceeded"
    eventually(lambda: not api.kubectl.get("pods", "-n", namespace)["items"], "its pods are gone")


def test_a_step_that_does_not_move_is_a_stall(
    api: ControlPlane, played: Played, namespace: str, tmp_path: Path
) -> None:
    played.ends[namespace] = lambda pod: (
        None
        if pod["metadata"]["labels"][STAGE] == "distill" and pod["metadata"]["labels"][ATTEMPT] == "1"
        else succeed(pod)
    )
    settings = {"stall_minutes": "0.05", "progress_seconds": "0.5", "figures_seconds": "0.5"}
    settings |= {"namespaces": json.dumps([namespace])}
    board = ProgressBoard(Stage.DISTILL, attempt=1)
    board.update(step=300, total=600, activity="training")
    # Rank 0's address is this machine's.
    with ProgressServer(board, f"127.0.0.1:{PROGRESS_PORT}"), operator(api.kubeconfig, tmp_path, **settings):
        api.kubectl.apply(manifest("run", namespace))
        live.wait_until_complete(api.kubectl, "run", namespace)
    told = dict(live.events(api.kubectl, "run", namespace))
    assert "step has not moved" in told["AttemptFailed"]
    assert condition(status(api.kubectl, "run", namespace), "Stalled")["status"] == "False", "it is over"
    assert status(api.kubectl, "run", namespace)["failures"] == 1


def test_a_step_that_moves_is_written_now_and_then_and_its_end_at_once(
    api: ControlPlane, played: Played, namespace: str, tmp_path: Path
) -> None:
    go = Event()
    played.ends[namespace] = lambda pod: (
        None if pod["metadata"]["labels"][STAGE] == "distill" and not go.is_set() else succeed(pod)
    )
    settings = {"progress_seconds": "0.1", "figures_seconds": "1000", "namespaces": json.dumps([namespace])}
    board = ProgressBoard(Stage.DISTILL, attempt=1)
    board.update(step=1, total=600, activity="training")
    with (
        ProgressServer(board, f"127.0.0.1:{PROGRESS_PORT}"),
        operator(api.kubeconfig, tmp_path, **settings) as process,
    ):
        api.kubectl.apply(manifest("run", namespace))
        eventually(lambda: status(api.kubectl, "run", namespace).get("step"), "the first figures are a transition")

        def looks() -> float:
            return process.metric("dmd_operator_looks_total", acted="false")

        begun, before = looks(), process.metric("dmd_operator_api_requests_total", verb="PUT", code="200")
        for step in range(2, 22):
            board.update(step=step)
            eventually(lambda: looks() >= begun + 2 * step, "it was asked again")  # noqa: B023
        written = process.metric("dmd_operator_api_requests_total", verb="PUT", code="200") - before
        assert written <= 1, "twenty steps are no twenty statuses"
        go.set()
        api.kubectl("delete", "pods", "--all", "-n", namespace, "--wait=false")
        live.wait_until_complete(api.kubectl, "run", namespace)
        eventually(lambda: not api.kubectl.get("services", "-n", namespace)["items"], "no Service is left")


def test_killed_at_any_moment_it_goes_on_and_makes_nothing_twice(
    api: ControlPlane, played: Played, namespace: str, tmp_path: Path
) -> None:
    api.kubectl.apply(*(manifest(f"run-{i}", namespace) for i in range(6)))
    settings = {"namespaces": json.dumps([namespace])}
    for kill in range(4):
        with operator(api.kubectl.kubeconfig, tmp_path / str(kill), **settings) as process:
            # A different moment of the stages each time: killed when so many Jobs have been made.
            wanted = 3 + 5 * kill
            eventually(lambda: len(api.kubectl.get("jobs", "-n", namespace)["items"]) >= wanted, "Jobs are made")  # noqa: B023
            process.stop(signal.SIGKILL)
    with operator(api.kubectl.kubeconfig, tmp_path / "last", **settings):
        for i in range(6):
            live.wait_until_complete(api.kubectl, f"run-{i}", namespace)
    names = [job["metadata"]["name"] for job in api.kubectl.get("jobs", "-n", namespace)["items"]]
    done = sorted(f"run-{i}-{stage}-1" for i in range(6) for stage in Stage)
    assert sorted(names) == done


def test_an_api_server_that_restarts_is_waited_for(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    if not isinstance(api, ControlPlane):
        pytest.fail("a given cluster's API server is not restarted: unset KUBECONFIG")
    go = Event()
    played.ends[namespace] = lambda pod: succeed(pod) if go.is_set() else None
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: phase(api, namespace) == "Preflight", "preflight began")
    api.restart_api_server(pause=2)
    go.set()
    api.kubectl("delete", "pods", "--all", "-n", namespace, "--wait=false")
    live.wait_until_complete(api.kubectl, "run", namespace)
    assert running.process.poll() is None


def test_the_next_replica_takes_over_when_the_leader_is_killed(
    api: ControlPlane, played: Played, namespace: str, tmp_path: Path
) -> None:
    settings = {"namespaces": json.dumps([namespace]), "lease_namespace": namespace, "lease_seconds": "4"}
    with (
        operator(api.kubeconfig, tmp_path / "a", identity="a", **settings) as first,
        operator(api.kubeconfig, tmp_path / "b", identity="b", **settings) as second,
    ):
        replicas = {"a": first, "b": second}
        leader = eventually(lambda: _holder(api, namespace), "somebody leads")
        played.ends[namespace] = lambda pod: None if pod["metadata"]["labels"][STAGE] == "distill" else succeed(pod)
        api.kubectl.apply(manifest("run", namespace))
        # The phase is written before the Job is made: only once the Job is there is work in flight.
        (uid,) = eventually(lambda: _distill_jobs(api, namespace), "it distils")
        replicas.pop(leader).stop(signal.SIGKILL)
        (other,) = replicas
        eventually(lambda: _holder(api, namespace) == other, "the other one leads")
        played.ends[namespace] = succeed
        _end_pods(api, namespace)
        live.wait_until_complete(api.kubectl, "run", namespace)
        after = api.kubectl.get("job", "run-distill-1", "-n", namespace)
        assert after["metadata"]["uid"] == uid, "work in flight went on unharmed"
        # Told to stop, it gives the lead away.
        assert replicas[other].stop() == 0
        eventually(lambda: _holder(api, namespace) == "", "nobody leads")


def _holder(api: ControlPlane, namespace: str) -> str:
    lease = api.kubectl.get("lease", "dmd-operator", "-n", namespace)
    return str(lease["spec"].get("holderIdentity") or "")


def _distill_jobs(api: ControlPlane, namespace: str) -> list[str]:
    """The uids of the namespace's Jobs of distill."""
    jobs = api.kubectl.get("jobs", "-n", namespace, "-l", "dmd-operator.io/stage=distill")["items"]
    return [job["metadata"]["uid"] for job in jobs]


def _end_pods(api: ControlPlane, namespace: str) -> None:
    """Lets the pods of distill that run on succeed."""
    for pod in api.kubectl.get("pods", "-n", namespace, "-l", "dmd-operator.io/stage=distill")["items"]:
        terminated = {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:00Z"}
        terminated |= {"startedAt": "2026-01-01T00:00:00Z"}
        container = {"name": "trainer", "state": {"terminated": terminated}, "ready": False, "restartCount": 0}
        container |= {"image": "", "imageID": ""}
        patch = json.dumps({"status": {"phase": "Succeeded", "containerStatuses": [container]}})
        name = pod["metadata"]["name"]
        api.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


@contextmanager
def a_node_without_gpus(api: ControlPlane) -> Iterator[None]:
    """A node that is only in the API; a thread renews its Lease, as its kubelet would."""
    stop = Event()
    quantities = {"cpu": "64", "memory": "256Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "Played"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "plain"}}
    api.kubectl.apply(node)
    state = {"capacity": quantities, "allocatable": quantities, "conditions": [ready]}
    patch = json.dumps({"status": state})
    api.kubectl("patch", "node", "plain", "--subresource=status", "--type=merge", "-p", patch)

    def renew() -> None:
        while not stop.wait(2):
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            lease = {"holderIdentity": "plain", "leaseDurationSeconds": 10, "renewTime": now}
            metadata = {"name": "plain", "namespace": "kube-node-lease"}
            api.kubectl.apply(
                {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": lease}
            )

    with ThreadPoolExecutor(1) as thread:
        renewing = thread.submit(renew)
        try:
            yield
        finally:
            stop.set()
            renewing.result(30)
            api.kubectl("delete", "node", "plain")


def test_pods_that_find_no_gpu_are_told_in_the_schedulers_words(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    """The GPU example as it is: accepted, past a preflight that is played, and waiting for its first GPU."""
    example = yaml.safe_load((live.CRD.parents[1] / "examples" / "distill-sd15.yaml").read_text())
    example["metadata"]["namespace"] = namespace
    example["spec"]["images"] = {"trainer": "trainer:1"}
    played.ends[namespace] = lambda pod: succeed(pod) if pod["metadata"]["labels"][STAGE] == "preflight" else None
    with a_node_without_gpus(api):
        api.kubectl.apply(example)
        found = eventually(
            lambda: (
                (c := condition(status(api.kubectl, "distill-sd15", namespace), "Healthy")).get("reason")
                == "Unschedulable"
                and c
            ),
            "the scheduler's reason",
        )
        assert "Insufficient nvidia.com/gpu" in found["message"]
        assert "free or add nodes" in found["message"]
        assert phase(api, namespace, "distill-sd15") == "Preparing"
        api.kubectl("delete", "dmd", "distill-sd15", "-n", namespace)


def test_its_health_and_figures_are_served(api: ControlPlane, running: Operator, namespace: str) -> None:
    assert running.get("/healthz") == (200, "ok\n")
    assert running.get("/readyz") == (200, "ok\n")
    before = running.metric("dmd_operator_distillations", phase="Complete")
    api.kubectl.apply(manifest("run", namespace))
    live.wait_until_complete(api.kubectl, "run", namespace)
    assert running.metric("dmd_operator_distillations", phase="Complete") == before + 1
    assert running.metric("dmd_operator_decision_seconds_count") >= 4
    assert running.metric("dmd_operator_api_requests_total", verb="POST", code="201") >= 8


def test_logs_are_json_lines(api: ControlPlane, running: Operator, namespace: str) -> None:
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: f"{namespace}/run: AttemptCreated" in running.log.read_text(), "it is logged")
    for line in running.log.read_text().splitlines():
        assert "message" in json.loads(line), line


def test_quiet_runs_cost_next_to_nothing(api: ControlPlane, running: Operator, played: Played, namespace: str) -> None:
    played.ends[namespace] = runs_on
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: condition(status(api.kubectl, "run", namespace), "Healthy").get("status") == "True", "it runs")
    version = api.kubectl.get("dmd", "run", "-n", namespace)["metadata"]["resourceVersion"]
    looked = running.metric("dmd_operator_looks_total")
    eventually(lambda: running.metric("dmd_operator_looks_total") >= looked + 4, "it was looked at")
    assert api.kubectl.get("dmd", "run", "-n", namespace)["metadata"]["resourceVersion"] == version


def test_a_resource_that_needs_defaults_says_which(api: ControlPlane, running: Operator, namespace: str) -> None:
    content = manifest("run", namespace)
    del content["spec"]["storage"]
    api.kubectl.apply(content)
    found = eventually(
        lambda: (
            condition(s := status(api.kubectl, "run", namespace), "Healthy").get("reason") == "InvalidManifest" and s
        ),
        "what is missing is told",
    )
    assert "spec.storage.uri" in condition(found, "Healthy")["message"]
    assert "defaults.storage.uri" in condition(found, "Healthy")["message"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation": {"podTemplate": {"spec": {"tolerationz": []}}}}, "evaluate would be refused: "),
        ({"pairWorkers": {"resources": {"limits": {"cpu": "two"}}}}, "are made of spec.pairWorkers.resources)"),
        ({"workers": {"podTemplate": {"spec": ["x"]}}}, "spec.workers.podTemplate"),
        ({"workers": {"podTemplate": {"spec": {"containers": [None]}}}}, "spec.workers.podTemplate"),
    ],
    ids=["unknown", "quantity", "spec", "container"],
)
def test_a_mistake_in_any_stages_pods_is_found_before_preflight(
    api: ControlPlane, running: Operator, namespace: str, settings: dict[str, Any], said: str
) -> None:
    api.kubectl.apply(manifest("run", namespace, **settings))
    found = eventually(lambda: refused(api, namespace), "it is refused")
    assert said in condition(found, "Healthy")["message"]
    assert found["attempt"] == 0
    assert api.kubectl.get("jobs", "-n", namespace)["items"] == []
    assert "Traceback" not in running.log.read_text()


def test_what_a_webhook_keeps_from_being_created_comes_when_it_is_back(
    api: ControlPlane, running: Operator, namespace: str
) -> None:
    hook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"{namespace}-away"},
        "webhooks": [
            {
                "name": "away.example.com",
                "clientConfig": {"url": "https://127.0.0.1:9/"},
                "rules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 1,
            }
        ],
    }
    api.kubectl.apply(hook)
    try:
        api.kubectl.apply(manifest("run", namespace))
        found = eventually(lambda: refused(api, namespace), "it is refused")
        assert "away.example.com" in condition(found, "Healthy")["message"]
        assert found["attempt"] == 0
    finally:
        api.kubectl("delete", "validatingwebhookconfiguration", f"{namespace}-away")
    live.wait_until_complete(api.kubectl, "run", namespace)
    jobs = {job["metadata"]["name"] for job in api.kubectl.get("jobs", "-n", namespace)["items"]}
    assert jobs == {f"run-{stage}-1" for stage in Stage}


def test_a_completed_job_that_is_cleaned_up_is_not_done_again(
    api: ControlPlane, running: Operator, played: Played, namespace: str
) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": f"{namespace}-ttl"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ],
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": "Object{spec: Object.spec{ttlSecondsAfterFinished: 0}}"},
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": f"{namespace}-ttl"},
        "spec": {"policyName": f"{namespace}-ttl"},
    }
    for one in (policy, binding):
        api.kubectl.apply(one)
    try:
        api.kubectl.apply(manifest("run", namespace))
        live.wait_until_complete(api.kubectl, "run", namespace)
    finally:
        for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
            api.kubectl("delete", kind, f"{namespace}-ttl")
    found = status(api.kubectl, "run", namespace)
    assert found["modelVersion"] == "1"
    reasons = [reason for reason, _ in live.events(api.kubectl, "run", namespace)]
    assert reasons.count("AttemptCreated") == 4


@pytest.mark.parametrize("wrong", [{"stage": "training"}, {"activeSeconds": 1e300}, {"attempt": 2**63 - 1}], ids=str)
def test_a_status_that_nobody_understands_keeps_no_wish_from_being_heard(
    api: ControlPlane, running: Operator, played: Played, namespace: str, wrong: dict[str, Any]
) -> None:
    played.ends[namespace] = runs_on
    api.kubectl.apply(manifest("run", namespace))
    eventually(lambda: phase(api, namespace) == "Preflight", "preflight begins")
    patch = json.dumps({"status": wrong})
    api.kubectl("patch", "dmd", "run", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    eventually(
        lambda: "StatusReset" in [reason for reason, _ in live.events(api.kubectl, "run", namespace)], "it is reset"
    )
    api.kubectl("patch", "dmd", "run", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(lambda: phase(api, namespace) == "Suspended", "it is suspended")
    eventually(lambda: not api.kubectl.get("pods", "-n", namespace)["items"], "its pods are gone")
