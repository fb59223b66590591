"""What a decision sees of a run's children: Jobs with their pods, reduced to what matters."""

from dataclasses import dataclass
from datetime import datetime

from dmd_api.runtime import Stage, StageResult


@dataclass(frozen=True)
class ObservedPod:
    """A pod of an attempt.

    Attributes:
        index: its completion index, which is its worker's number.
        phase: as in the pod's status; `Unknown` counts as running.
        exit_code: of the trainer's container, once it has ended.
        result: its termination message, where it is one of ours.
        lost: why the pod is or was taken away (`node unreachable`, `evicted`, `deleted`), None if it was not.
        past_grace: it is being deleted and its grace period is over: it counts as gone, whatever its node says.
        waiting: why it does not run yet, in the scheduler's or the kubelet's words.
    """

    index: int
    phase: str = "Pending"
    exit_code: int | None = None
    result: StageResult | None = None
    lost: str | None = None
    past_grace: bool = False
    waiting: str | None = None

    @property
    def over(self) -> bool:
        """It holds no resources any more that a next attempt would need, and writes nothing."""
        return self.phase in {"Succeeded", "Failed"} or self.past_grace


@dataclass(frozen=True)
class ObservedJob:
    """An attempt at a stage.

    Attributes:
        created: its creation time.
        complete: it has the condition Complete.
        failed: the message of its condition Failed, None without one.
        deleting: it has a deletion timestamp.
    """

    name: str
    stage: Stage
    attempt: int
    created: datetime
    complete: bool = False
    failed: str | None = None
    deleting: bool = False
    pods: tuple[ObservedPod, ...] = ()

    @property
    def over(self) -> bool:
        """None of its pods is left that could still work."""
        return all(pod.over for pod in self.pods)

    @property
    def running(self) -> bool:
        """All pods it is known to have run."""
        return bool(self.pods) and all(pod.phase == "Running" for pod in self.pods)
