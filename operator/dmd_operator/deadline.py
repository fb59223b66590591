"""How long a run was active, and what follows from it: the deadline, and the end of a finished run's life."""

from datetime import datetime, timedelta

from dmd_api.manifest import Spec
from dmd_api.status import RunStatus


def active(status: RunStatus, now: datetime) -> timedelta:
    """How long the run was active; being suspended does not count."""
    current = now - status.active_since if status.active_since is not None else timedelta()
    return timedelta(seconds=status.active_seconds) + current


def until_deadline(spec: Spec, status: RunStatus, now: datetime) -> timedelta | None:
    """What is left of `activeDeadlineSeconds`, negative when it has passed; None without one or while suspended."""
    if spec.active_deadline_seconds is None or status.active_since is None:
        return None
    return timedelta(seconds=spec.active_deadline_seconds) - active(status, now)


def until_expiry(spec: Spec, status: RunStatus, now: datetime) -> timedelta | None:
    """What is left of `ttlSecondsAfterFinished`; None where the run is not finished or stays for ever."""
    if spec.ttl_seconds_after_finished is None or status.completion_time is None:
        return None
    return status.completion_time + timedelta(seconds=spec.ttl_seconds_after_finished) - now
