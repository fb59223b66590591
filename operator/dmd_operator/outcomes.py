"""The outcome of an attempt: the cause among the ends of its pods, and not its consequences."""

from dataclasses import dataclass
from enum import StrEnum

from dmd_api.causes import Weight, weigh
from dmd_api.exit_codes import ExitCode
from dmd_api.stages import Stage
from dmd_operator.observed import ObservedJob, ObservedPod


class Kind(StrEnum):
    """The ends that an attempt can have, and what each asks for."""

    DONE = "Done"
    GATES_FAILED = "GatesFailed"
    """Done too: the model version is there, without its alias."""
    BAD_INPUT = "BadInput"
    DIVERGED = "TrainingDiverged"
    COLLAPSED = "TrainingCollapsed"
    """Ended by `training.stopOnCollapse`: its exit code is that of training that diverged."""
    DISRUPTED = "Disrupted"
    """Nobody's fault: the next attempt follows at once, and nothing is counted."""
    FAILED = "AttemptFailed"
    """Counted against maxRestarts; the next attempt waits for its back-off."""


@dataclass(frozen=True)
class Outcome:
    """An end and what to say of it."""

    kind: Kind
    message: str = ""
    result: dict[str, str | int | float | bool | None] | None = None

    def completes(self, stage: Stage) -> bool:
        """True if the stage is done."""
        return self.kind is Kind.DONE or (self.kind is Kind.GATES_FAILED and stage is Stage.EVALUATE)

    @property
    def decisive(self) -> bool:
        """The next attempt would end the same way."""
        return self.kind in {Kind.BAD_INPUT, Kind.DIVERGED, Kind.COLLAPSED}


def outcome_of(job: ObservedJob) -> Outcome | None:
    """The outcome of `job`; None while it runs.

    Only what something outside is known to have done is a disruption: a pod that was taken away, workers that were
    interrupted or left by a peer. What nobody explains is a failure.

    An attempt with a lost pod is over even where its Job is not, since survivors cannot be joined again; only where
    pods are retried on their own are lost pods left to their Job.
    """
    if job.complete:
        return Outcome(Kind.DONE, result=result_of(job))
    if job.outlived:
        return Outcome(Kind.DONE, _outlived(job), result_of(job))
    ends = [(weight, pod) for pod in job.pods if (weight := weigh(pod.exit_code, pod.error)) is not None]
    ends.sort(key=lambda end: end[0])
    if ends and ends[0][0].decisive:
        weight, pod = ends[0]
        return Outcome(_decisive(weight, pod), _say(pod))
    if job.stage.pod_retries and job.failed is None and not job.deleting:
        return None
    # Only index 0 carries the result; where it was ended before it could say so, the stage is done again.
    if any(pod.index == 0 and pod.exit_code == ExitCode.GATES_FAILED for pod in job.pods):
        result = result_of(job)
        gates = (result or {}).get("gatesFailed", "see the report")
        return Outcome(Kind.GATES_FAILED, f"gates failed: {gates}", result)
    if cause := next((pod for weight, pod in ends if weight.is_cause and not pod.lost), None):
        return Outcome(Kind.FAILED, _say(cause))
    if failed := next((pod for pod in job.pods if pod.explanation and not pod.lost), None):
        return Outcome(Kind.FAILED, f"worker {failed.index}: {failed.explanation}")
    if lost := [pod for pod in job.pods if pod.lost]:
        return Outcome(Kind.DISRUPTED, "; ".join(f"worker {pod.index} lost, {pod.lost}" for pod in lost))
    if job.deleting:
        return Outcome(Kind.DISRUPTED, "its Job was deleted")
    if ends:
        names = ", ".join(str(pod.index) for _, pod in ends)
        return Outcome(Kind.DISRUPTED, f"interrupted, or left by a peer: worker {names}")
    if ended := next((pod for pod in job.pods if pod.phase == "Failed"), None):
        remedy = f"`kubectl describe pod {ended.name}` may know more"
        return Outcome(Kind.FAILED, f"worker {ended.index} failed and nothing says why; {remedy}")
    return Outcome(Kind.FAILED, f"its Job failed: {job.failed}") if job.failed is not None else None


def result_of(job: ObservedJob) -> dict[str, str | int | float | bool | None] | None:
    """The result that rank 0 of `job` reports; None where its pod is gone."""
    results = (pod.result for pod in job.pods if pod.index == 0 and pod.result is not None)
    return next((dict(result.result) for result in results), None)


def _outlived(job: ObservedJob) -> str:
    pod = next(pod for pod in job.pods if pod.outlived)
    return (
        f"worker {pod.index} is done and its container {', '.join(pod.beside)} still runs: make it a native sidecar "
        '(an init container with restartPolicy Always), or keep it out, as with sidecar.istio.io/inject: "false" in '
        "the podTemplate's annotations"
    )


def _decisive(weight: Weight, pod: ObservedPod) -> Kind:
    """Two ends share the exit code of training that diverged: the reason among the pod's last words says which."""
    if weight is Weight.BAD_INPUT:
        return Kind.BAD_INPUT
    collapsed = pod.error is not None and pod.error.reason == Kind.COLLAPSED
    return Kind.COLLAPSED if collapsed else Kind.DIVERGED


def _say(pod: ObservedPod) -> str:
    if pod.error is not None:
        return f"worker {pod.index}: {pod.error.message}"
    code = pod.exit_code
    known = {137: "killed, probably out of memory", 139: "segmentation fault"}
    why = pod.reason or known.get(code or 0)
    return f"worker {pod.index} ended with exit code {code}{f' ({why})' if why else ''} and left no message"
