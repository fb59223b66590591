"""Pods as their kubelets write them, all the way to what is decided about their run."""

from datetime import timedelta
from typing import Any

import pytest

from dmd_api.exit_codes import ExitCode
from dmd_api.labels import CONTAINER, INDEX
from dmd_api.runtime import StageError, StageResult
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.decide import decide
from dmd_operator.decision import Decision
from dmd_operator.endings import DISRUPTIONS_IN_A_ROW
from dmd_operator.observe import observe_pod, with_pods
from dmd_operator.observed import ObservedPod
from dmd_operator.run import Run
from tests.operator.test_decide import NOW, ended, job, manifest, reason, running

EARLIER = (NOW - timedelta(minutes=10)).isoformat()
A_MINUTE_AGO = (NOW - timedelta(minutes=1)).isoformat()
JUST_NOW = (NOW - timedelta(seconds=5)).isoformat()


def container(name: str = CONTAINER, **state: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "state": state}


def exited(code: int, name: str = CONTAINER, at: str = EARLIER, **fields: Any) -> dict[str, Any]:
    why = "Completed" if code == 0 else "Error"
    return container(name, terminated={"exitCode": code, "reason": why, "finishedAt": at, **fields})


def pod(phase: str, *containers: dict[str, Any], index: int = 0, **status: Any) -> ObservedPod:
    observed = observe_pod(
        {
            "metadata": {"name": f"run-distill-1-{index}", "labels": {INDEX: str(index)}},
            "status": {"phase": phase, "containerStatuses": list(containers), "startTime": EARLIER, **status},
        }
    )
    assert observed is not None
    return observed


def look(*pods: ObservedPod, stage: Stage = Stage.DISTILL, **known: Any) -> Decision:
    status = RunStatus(**{"stage": stage, "attempt": 1, "start_time": NOW, "active_since": NOW, **known})
    jobs = with_pods([job(stage, 1, completions=max(len(pods), 1))], [("", one) for one in pods], NOW)
    return decide(Run(manifest(), status, jobs, NOW))


INITIALISING = container(waiting={"reason": "PodInitializing"})
CREATING = container(waiting={"reason": "ContainerCreating"})
ISTIO = container("istio-proxy", running={})
SCRATCH_FULL = 'Usage of EmptyDir volume "scratch" exceeds the limit "10Gi". '
OWN_STORAGE = 'Container trainer exceeded its local ephemeral storage limit "1Gi". '
NODE_SHORT = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
KUBELET = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": NODE_SHORT}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        pytest.param(
            pod("Failed", INITIALISING, initContainerStatuses=[exited(1, "fetch")]),
            "worker 0: init container fetch ended with exit code 1 (Error)",
            id="init container",
        ),
        pytest.param(
            pod("Failed", exited(0), exited(1, "istio-proxy")),
            "worker 0: container istio-proxy ended with exit code 1 (Error)",
            id="sidecar",
        ),
        pytest.param(
            pod("Failed", reason="UnexpectedAdmissionError", message="no healthy devices present"),
            "worker 0: UnexpectedAdmissionError: no healthy devices present",
            id="refused by its kubelet",
        ),
        pytest.param(
            pod("Failed", exited(130), reason="Evicted", message=SCRATCH_FULL, conditions=[KUBELET]),
            f"worker 0: Evicted: {SCRATCH_FULL.strip()}",
            id="outgrew its volume",
        ),
        pytest.param(
            pod("Failed", exited(137), reason="Evicted", message=OWN_STORAGE),
            "worker 0 ended with exit code 137 (killed, probably out of memory) and left no message",
            id="outgrew its storage, and was killed",
        ),
        pytest.param(
            pod("Failed", exited(0)),
            "worker 0 failed and nothing says why; `kubectl describe pod run-distill-1-0` may know more",
            id="nothing says why",
        ),
    ],
)
def test_whatever_ended_a_pod_is_named_and_counted(one: ObservedPod, said: str) -> None:
    decision = look(one)
    assert reason(decision, "Healthy") == "False AttemptFailed"
    assert decision.events[0].message == f"distill: attempt 1 ended: {said}"
    assert (decision.status.failures, decision.status.retries) == (1, 1)


def test_a_node_that_runs_short_is_a_disruption_in_its_kubelets_words() -> None:
    decision = look(pod("Failed", exited(130), reason="Evicted", message=NODE_SHORT, conditions=[KUBELET]))
    assert reason(decision, "Healthy") == "False Disrupted"
    assert NODE_SHORT.strip() in decision.events[0].message
    assert decision.status.failures == 0


def test_disruptions_in_a_row_count_until_something_moves() -> None:
    interrupted = ended(0, ExitCode.INTERRUPTED, "Interrupted", "stopped")
    known: dict[str, Any] = {}
    for row in range(1, DISRUPTIONS_IN_A_ROW + 1):
        decision = look(interrupted, **known)
        known = {"disruptions": decision.status.disruptions, "failures": decision.status.failures}
        assert known == {"disruptions": row, "failures": int(row == DISRUPTIONS_IN_A_ROW)}
    assert "3 disruptions in a row without progress count as failures" in decision.events[0].message


@pytest.mark.parametrize(
    ("one", "reported", "said"),
    [
        pytest.param(
            pod(
                "Pending",
                INITIALISING,
                initContainerStatuses=[container("fetch", waiting={"reason": "ImagePullBackOff", "message": "no"})],
            ),
            "Unknown ImagePullBackOff",
            "worker 0: ImagePullBackOff: init container fetch: no; check",
            id="init container's image",
        ),
        pytest.param(
            pod("Pending", container(running={}), container("x", waiting={"reason": "InvalidImageName"})),
            "Unknown InvalidImageName",
            "worker 0: InvalidImageName: container x; correct",
            id="sidecar's image",
        ),
        pytest.param(
            pod("Pending", CREATING),
            "Unknown StartingSlowly",
            "worker 0 has not started its trainer for 5 minutes (ContainerCreating): a volume",
            id="volume",
        ),
        pytest.param(
            pod("Pending", INITIALISING, initContainerStatuses=[container("fetch", running={})]),
            "Unknown StartingSlowly",
            "worker 0 has not started its trainer for 5 minutes (init container fetch runs): an init container",
            id="init container",
        ),
        pytest.param(
            pod("Pending", CREATING, startTime=A_MINUTE_AGO),
            "Unknown ContainerCreating",
            "worker 0: its image is being pulled",
            id="large image",
        ),
        pytest.param(
            pod(
                "Pending",
                INITIALISING,
                initContainerStatuses=[container("fetch", running={})],
                startTime=A_MINUTE_AGO,
            ),
            "Unknown PodInitializing",
            "worker 0: init container fetch runs",
            id="init container at work",
        ),
        pytest.param(pod("Pending", CREATING, startTime=JUST_NOW), None, "", id="just begun"),
    ],
)
def test_whatever_keeps_a_pod_from_starting_is_reported(one: ObservedPod, reported: str | None, said: str) -> None:
    decision = look(one)
    assert reason(decision, "Healthy") == reported
    healthy = decision.status.condition("Healthy")
    assert (healthy.message if healthy else "").startswith(said)


def test_a_sidecar_that_lives_on_ends_no_work_and_holds_none_up() -> None:
    done = StageResult(stage=Stage.EVALUATE, result={"modelVersion": "7"}).to_termination_message()
    decision = look(pod("Running", exited(0, message=done), ISTIO), stage=Stage.EVALUATE)
    assert decision.status.phase == "Complete"
    assert decision.status.model_version == "7"
    assert "its container istio-proxy still runs" in decision.events[0].message
    assert look(pod("Running", exited(0, at=JUST_NOW), ISTIO)).status.ended_attempt == 0, "it may end by itself"
    both = look(pod("Running", exited(0), ISTIO), pod("Running", container(running={}), ISTIO, index=1))
    assert both.status.stage is Stage.DISTILL, "another worker is at work"


def test_an_error_beside_a_sidecar_is_the_workers_own() -> None:
    error = StageError(reason="BadInput", message="no such teacher", exit_code=ExitCode.BAD_INPUT)
    message = StageResult(stage=Stage.DISTILL, error=error).to_termination_message()
    assert look(pod("Running", exited(2, message=message), ISTIO)).status.phase == "Failed"


def test_healthy_says_nothing_of_an_earlier_stage() -> None:
    done = job(Stage.PREFLIGHT, 1, ended(0, 0), complete=True)
    status = RunStatus(stage=Stage.PREFLIGHT, attempt=1, start_time=NOW, active_since=NOW)
    before = Run(manifest(), status, (done,), NOW).mark("Healthy", "True", "Running", "preflight: attempt 1 runs")
    assert reason(decide(before), "Healthy") == "Unknown Starting"


def test_a_missing_service_is_made_good() -> None:
    status = RunStatus(stage=Stage.DISTILL, attempt=1, start_time=NOW, active_since=NOW)
    lonely = job(Stage.DISTILL, 1, running(0), running(1), completions=2, has_service=False)
    assert decide(Run(manifest(), status, (lonely,), NOW)).create == (Stage.DISTILL, 1)


def test_no_service_is_missed_where_there_is_nobody_to_meet() -> None:
    status = RunStatus(stage=Stage.PREFLIGHT, attempt=1, start_time=NOW, active_since=NOW)
    alone = job(Stage.PREFLIGHT, 1, running(0), completions=1, has_service=False)
    assert decide(Run(manifest(), status, (alone,), NOW)).create is None
