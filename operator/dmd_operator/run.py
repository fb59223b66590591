"""What a decision is made from, and what it is: the types between observing, deciding and applying."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import Progress, Stage
from dmd_api.status import RunStatus
from dmd_operator.observed import ObservedJob


@dataclass(frozen=True)
class Settings:
    """What the operator's owner chose."""

    stall_timeout: timedelta = timedelta(minutes=30)
    progress_every: timedelta = timedelta(seconds=5)
    gone_after: timedelta = timedelta(seconds=5)
    """How soon to look again at pods that are going away."""


@dataclass(frozen=True)
class Event:
    """An event for `kubectl describe`."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done, in this order: write the status, delete, create, tell.

    The status comes first. Whatever it says has ended is dealt with once, even where the operator is killed before it
    deletes the rest, since what is left over is deleted by the next look. An attempt's number is never used twice,
    even where the operator is killed before it creates the Job. And an operator that has lost its lead, whose write
    conflicts, does nothing.

    Attributes:
        status: the status as it should be written.
        create: the stage and the number of an attempt to create.
        delete: names of Jobs to delete, their pods with them.
        delete_resource: the resource's time is over.
        events: what to tell.
        again: when to look again though nothing happens; None: not before something does.
    """

    status: RunStatus
    create: tuple[Stage, int] | None = None
    delete: tuple[str, ...] = ()
    delete_resource: bool = False
    events: tuple[Event, ...] = ()
    again: timedelta | None = None

    @property
    def acts(self) -> bool:
        """It does more than to note how things are: whoever applies it must have looked closely."""
        return self.create is not None or bool(self.delete or self.events) or self.delete_resource


@dataclass(frozen=True)
class Run:
    """All that a decision is made from.

    Attributes:
        manifest: the resource, its defaults resolved.
        status: as last written.
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
