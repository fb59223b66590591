"""A run: all that a decision is made from."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import Progress
from dmd_api.spec import Spec
from dmd_api.status import ConditionStatus, RunStatus
from dmd_operator import conditions
from dmd_operator.observed import ObservedJob


@dataclass(frozen=True)
class Settings:
    """Choices of the operator's owner.

    Attributes:
        stall_timeout: a step that does not move for this long is a stall.
        progress_every: how often a running attempt is asked for its progress.
        write_every: how often a status is written in which only moving figures differ.
        gone_after: how soon to look again at pods that are going away.
    """

    stall_timeout: timedelta = timedelta(minutes=30)
    progress_every: timedelta = timedelta(seconds=5)
    write_every: timedelta = timedelta(seconds=30)
    gone_after: timedelta = timedelta(seconds=5)


@dataclass(frozen=True)
class Run:
    """All that a decision is made from. Rules take a run and return a decision, or the run with its status changed.

    Attributes:
        manifest: the resource, its defaults resolved.
        status: as last written, and as changed since by the rules.
        jobs: every Job that the resource owns, read from the API server and not from a cache, so that an attempt that
            was created is seen.
        progress: what rank 0 of the present attempt shows, None if it did not answer.
        now: the time.
        generation: the resource's.
        settings: the operator's.
    """

    manifest: DMDDistillation
    status: RunStatus
    jobs: tuple[ObservedJob, ...]
    now: datetime
    progress: Progress | None = None
    generation: int = 0
    settings: Settings = field(default_factory=Settings)

    @property
    def spec(self) -> Spec:
        """The manifest's."""
        return self.manifest.spec

    @property
    def present_job(self) -> ObservedJob | None:
        """The Job of the newest attempt at the present stage; None where it is gone."""
        wanted = (self.status.stage, self.status.attempt)
        return next((job for job in self.jobs if (job.stage, job.attempt) == wanted), None)

    def update(self, **fields: Any) -> Self:
        """The run with these fields of its status changed."""
        assert fields.keys() <= RunStatus.model_fields.keys()
        return replace(self, status=self.status.model_copy(update=fields))

    def mark(self, kind: str, value: ConditionStatus, reason: str, message: str = "") -> Self:
        """The run with this condition set."""
        marked = conditions.mark(self.status, kind, value, reason, message, now=self.now, generation=self.generation)
        return replace(self, status=marked)

    def unmark_stalled(self) -> Self:
        """The run without a stall, which ends with its attempt or with the next step."""
        return self.mark("Stalled", "False", "AttemptEnded") if self.status.is_true("Stalled") else self
