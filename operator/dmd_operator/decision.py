"""A decision: the status to write, and what to create, delete and report."""

from dataclasses import dataclass
from datetime import timedelta

from dmd_api.stages import Stage
from dmd_api.status import RunStatus


@dataclass(frozen=True)
class Event:
    """An event for `kubectl describe`."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """The actions that follow from a run, in this order: write the status, delete, create, report.

    The status comes first. Whatever it says has ended is handled once, even where the operator is killed before it
    deletes the rest, since what is left over is deleted by the next look. An attempt's number is never used twice,
    even where the operator is killed before it creates the Job. And an operator that has lost its lead, whose write
    conflicts, does nothing.

    Attributes:
        status: the status to write.
        create: the stage and the number of an attempt to create.
        delete: names of Jobs to delete, their pods with them.
        delete_services: names of Services that nobody meets by any more.
        delete_resource: the resource's time is over.
        events: the events to report.
        again: when to look again though nothing happens; None: not before something does.
    """

    status: RunStatus
    create: tuple[Stage, int] | None = None
    delete: tuple[str, ...] = ()
    delete_services: tuple[str, ...] = ()
    delete_resource: bool = False
    events: tuple[Event, ...] = ()
    again: timedelta | None = None

    @property
    def acts(self) -> bool:
        """It does more than to note how things are: whoever applies it must have looked closely."""
        return any((self.create, self.delete, self.delete_services, self.delete_resource, self.events))


def sooner(first: timedelta | None, second: timedelta | None) -> timedelta | None:
    """The shorter of two waits, of which None is endless."""
    both = [wait for wait in (first, second) if wait is not None]
    return min(both) if both else None
