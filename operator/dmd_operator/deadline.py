"""Active time, the deadline, and the time to live of a finished run."""

from datetime import timedelta

from dmd_operator.run import Run


def active(run: Run) -> timedelta:
    """The time that the run was active, without the time that it was suspended."""
    since = run.status.active_since
    # By a clock that was ahead it may begin in the future.
    lasting = max(run.now - since, timedelta()) if since is not None else timedelta()
    return timedelta(seconds=run.status.active_seconds) + lasting


def until_deadline(run: Run) -> timedelta | None:
    """The rest of `activeDeadlineSeconds`, negative when it has passed; None without one or while suspended."""
    if run.spec.active_deadline_seconds is None or run.status.active_since is None:
        return None
    return timedelta(seconds=run.spec.active_deadline_seconds) - active(run)


def until_expiry(run: Run) -> timedelta | None:
    """The rest of `ttlSecondsAfterFinished`; None where the run is not finished, or stays forever."""
    if run.spec.ttl_seconds_after_finished is None or run.status.completion_time is None:
        return None
    return run.status.completion_time + timedelta(seconds=run.spec.ttl_seconds_after_finished) - run.now
