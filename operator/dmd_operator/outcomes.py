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

    Where no pod names a cause, something outside ended the attempt, and nothing is counted.

    An attempt with a lost pod is over even where its Job is not, since survivors cannot be joined again; only where
    pods are retried on their own are lost pods left to their Job.
    """
    if job.complete:
        return Outcome(Kind.DONE, result=result_of(job))
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
        return Outcome(Kind.GATES_FAILED, f"gates failed: {result.get('gatesFailed', 'see the report')}", result)
    if cause := next((pod for weight, pod in ends if weight.is_cause and not pod.lost), None):
        return Outcome(Kind.FAILED, _say(cause))
    if lost := [pod for pod in job.pods if pod.lost]:
        return Outcome(Kind.DISRUPTED, "; ".join(f"worker {pod.index} lost, {pod.lost}" for pod in lost))
    if job.deleting:
        return Outcome(Kind.DISRUPTED, "its Job was deleted")
    if ended := [pod for pod in job.pods if pod.phase == "Failed"]:
        names = ", ".join(str(pod.index) for pod in ended)
        return Outcome(Kind.DISRUPTED, f"interrupted, or left by a peer: worker {names}")
    return Outcome(Kind.FAILED, f"its Job failed: {job.failed}") if job.failed is not None else None


def result_of(job: ObservedJob) -> dict[str, str | int | float | bool | None]:
    """The result that rank 0 of `job` reports; empty where its pod is gone."""
    results = (pod.result for pod in job.pods if pod.index == 0 and pod.result is not None)
    return next((dict(result.result) for result in results), {})


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
