"""A run's Jobs and pods as a decision sees them: reduced to what matters."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dmd_api.runtime import Progress, StageError, StageResult
from dmd_api.stages import Stage

DELETED = "deleted"
"""The loss of a pod that somebody deleted: a person, or the controller of a Job that fails."""

PATIENCE = timedelta(seconds=30)
"""The time that a pod's other containers get to end after its trainer."""


@dataclass(frozen=True)
class ObservedPod:
    """A pod of an attempt.

    Attributes:
        index: its completion index, which is its worker's number.
        phase: as in the pod's status; `Unknown` counts as running.
        exit_code: of the trainer's container, once it has ended.
        reason: why it ended, in the kubelet's word (`OOMKilled`, `StartError`), where that says more than the code.
        result: its termination message, where it is one of ours.
        explanation: why the pod failed though its trainer does not say it: the kubelet's words, or another container's
            end.
        done_at: when its trainer ended, if it ended well.
        beside: the names of its other containers that run.
        outlived: they have run on for so long that they will not end by themselves.
        lost: why the pod is or was taken away (`node unreachable`, `evicted`, `deleted`), None if it was not.
        gone_at: it is being deleted, and this is when its grace period is over.
        past_grace: that time has come: it counts as gone, whatever its node says.
        waiting: why it does not run yet, in the scheduler's or the kubelet's words.
        starting: what it is busy with before its trainer can start, where nothing is known to be wrong.
        starting_since: since when it has a node.
        ip: its address, where it has one.
        name: its name.
    """

    index: int
    phase: str = "Pending"
    exit_code: int | None = None
    reason: str | None = None
    result: StageResult | None = None
    explanation: str | None = None
    done_at: datetime | None = None
    beside: tuple[str, ...] = ()
    outlived: bool = False
    lost: str | None = None
    gone_at: datetime | None = None
    past_grace: bool = False
    waiting: str | None = None
    starting: str | None = None
    starting_since: datetime | None = None
    ip: str | None = None
    name: str = ""

    def at(self, now: datetime) -> "ObservedPod":
        """The pod as it is now, without news of it."""
        outlived = bool(self.beside) and self.done_at is not None and now - self.done_at >= PATIENCE
        return replace(self, past_grace=self.gone_at is not None and now >= self.gone_at, outlived=outlived)

    @property
    def error(self) -> StageError | None:
        """The error in its termination message, where there is one."""
        return self.result.error if self.result is not None else None

    @property
    def over(self) -> bool:
        """It holds no resources that the next attempt would need, and writes nothing."""
        return self.phase in {"Succeeded", "Failed"} or self.past_grace


@dataclass(frozen=True)
class ObservedJob:
    """An attempt at a stage.

    Attributes:
        uid: by which its pods name their owner.
        created: its creation time.
        complete: it has the condition Complete.
        failed: the message of its condition Failed, None without one.
        deleting: it has a deletion timestamp.
        suspended: its `suspend` is set, as queueing systems do until there is room for it.
        failing: its controller has decided that it fails, and ends the pods that are left.
        completions: how many pods it wants.
        has_service: its workers can find each other by name; None where nobody has looked.
    """

    name: str
    stage: Stage
    attempt: int
    created: datetime
    complete: bool = False
    failed: str | None = None
    deleting: bool = False
    suspended: bool = False
    failing: bool = False
    completions: int = 0
    has_service: bool | None = None
    uid: str = ""
    pods: tuple[ObservedPod, ...] = ()

    @property
    def over(self) -> bool:
        """None of its pods is left that could still work, and there will be no others."""
        finished = self.complete or self.failed is not None or self.deleting
        return finished and all(pod.over for pod in self.pods)

    @property
    def ends_itself(self) -> bool:
        """Its controller ends the pods that are left: it need not be deleted, and keeps its pods' logs.

        Not so with a pod on a lost node, which may never be seen to end. Where pods are retried, one that failed ends
        nothing.
        """
        if self.deleting:
            return True
        failing = self.failing or (not self.stage.pod_retries and any(pod.phase == "Failed" for pod in self.pods))
        return failing and not any(pod.past_grace or pod.lost not in {None, DELETED} for pod in self.pods)

    @property
    def outlived(self) -> bool:
        """Every trainer has done its work, and other containers keep the pods from ending."""
        done = {pod.index for pod in self.pods if pod.done_at is not None}
        return len(done) >= max(self.completions, 1) and any(pod.outlived for pod in self.pods)

    @property
    def running(self) -> bool:
        """All its pods are there, and run or have done their work."""
        at_work = [pod for pod in self.pods if pod.phase in {"Running", "Succeeded"}]
        complete = len({pod.index for pod in at_work}) >= max(self.completions, 1)
        waiting = any(pod.phase == "Pending" for pod in self.pods)
        return complete and not waiting and any(pod.phase == "Running" for pod in self.pods)

    def shows(self, progress: Progress) -> bool:
        """True if `progress` is this attempt's, and not an earlier one's."""
        return (progress.stage, progress.attempt) == (self.stage, self.attempt)
