"""How an attempt ended: the cause among the ends of its pods, and not its consequences."""

from dataclasses import dataclass
from enum import StrEnum

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import PEER_LOST, Stage
from dmd_operator.observed import ObservedJob, ObservedPod


class Kind(StrEnum):
    """The ends that an attempt can have, and what each asks for."""

    DONE = "Done"
    GATES_FAILED = "GatesFailed"
    """Done too: the model version is there, without its alias."""
    BAD_INPUT = "BadInput"
    DIVERGED = "TrainingDiverged"
    COLLAPSED = "TrainingCollapsed"
    """What `training.stopOnCollapse` ends: its exit code is that of training that diverged."""
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


_CAUSES = {
    ExitCode.BAD_INPUT: Kind.BAD_INPUT,
    ExitCode.DIVERGED: Kind.DIVERGED,
}
"""Exit codes that say the cause themselves, whatever happened to the other pods, the strongest first."""


def outcome_of(job: ObservedJob) -> Outcome | None:
    """How `job` ended; None while it goes on.

    A worker that loses a peer ends with an error of its own, and the Job's controller interrupts those that are left:
    neither is a cause. Where no pod names a cause, something outside ended the attempt, and nothing is counted.

    An attempt with a lost pod is over even where its Job is not, since survivors cannot be joined again; only
    preparing, whose pods work alone, leaves lost pods to its Job.
    """
    if job.complete:
        return Outcome(Kind.DONE, result=result_of(job))
    for code, kind in _CAUSES.items():
        if pod := next((pod for pod in job.pods if pod.exit_code == code), None):
            return Outcome(_more_exactly(kind, pod), _say(pod))
    if job.stage is Stage.PREPARE and job.failed is None and not job.deleting:
        return None
    # Only index 0 carries the result; where it was ended before it could say so, the stage is done again.
    if any(pod.index == 0 and pod.exit_code == ExitCode.GATES_FAILED for pod in job.pods):
        result = result_of(job)
        return Outcome(Kind.GATES_FAILED, f"gates failed: {result.get('gatesFailed', 'see the report')}", result)
    if pod := next((pod for pod in job.pods if _is_cause(pod)), None):
        return Outcome(Kind.FAILED, _say(pod))
    if lost := [pod for pod in job.pods if pod.lost]:
        return Outcome(Kind.DISRUPTED, "; ".join(f"worker {pod.index} lost, {pod.lost}" for pod in lost))
    if job.deleting:
        return Outcome(Kind.DISRUPTED, "its Job was deleted")
    if ended := [pod for pod in job.pods if pod.phase == "Failed"]:
        names = ", ".join(str(pod.index) for pod in ended)
        return Outcome(Kind.DISRUPTED, f"interrupted, or left by a peer: worker {names}")
    return Outcome(Kind.FAILED, f"its Job failed: {job.failed}") if job.failed is not None else None


def _more_exactly(kind: Kind, pod: ObservedPod) -> Kind:
    """What two ends of one exit code are told apart by: the reason among the pod's last words."""
    error = pod.result.error if pod.result is not None else None
    collapsed = kind is Kind.DIVERGED and error is not None and error.reason == Kind.COLLAPSED
    return Kind.COLLAPSED if collapsed else kind


def _is_cause(pod: ObservedPod) -> bool:
    """Whether the pod failed by itself: not taken away, not interrupted, not left by a peer."""
    if pod.lost or pod.exit_code in {None, ExitCode.DONE, ExitCode.GATES_FAILED, ExitCode.INTERRUPTED}:
        return False
    error = pod.result.error if pod.result is not None else None
    return error is None or error.reason != PEER_LOST


def _say(pod: ObservedPod) -> str:
    if pod.result is not None and pod.result.error is not None:
        return f"worker {pod.index}: {pod.result.error.message}"
    code = pod.exit_code
    known = {137: "killed, as when out of memory", 139: "segmentation fault"}
    why = pod.reason or known.get(code or 0)
    return f"worker {pod.index} ended with exit code {code}{f' ({why})' if why else ''} and left no message"


def result_of(job: ObservedJob) -> dict[str, str | int | float | bool | None]:
    """What rank 0 of `job` reports; empty where its pod is gone."""
    results = (pod.result for pod in job.pods if pod.index == 0 and pod.result is not None)
    return next((dict(result.result) for result in results), {})
