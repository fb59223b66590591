"""The time, and by how much its clock was set meanwhile.

A clock is set while the operator runs: by NTP when a machine wakes up, or by hand. What is to be waited for, or has
not moved for a while, would then seem to be so for an hour more or less than it is.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from dmd_api.status import RunStatus

log = logging.getLogger(__name__)

LEAST = timedelta(seconds=10)
"""Less is no setting: clocks drift, and are slewed."""
MOVED = ("next_attempt_time", "last_progress_time", "active_since")
"""Times of a status that durations are measured from; those that are for people stay as they are."""


class Clock:
    """The time.

    Args:
        wall: seconds since 1970, by a clock that may be set.
        steady: seconds by a clock that nobody sets.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._ahead, self._set = self._difference(), timedelta()

    def now(self) -> datetime:
        """The time as people know it."""
        return datetime.fromtimestamp(self._wall(), UTC)

    def set_so_far(self) -> timedelta:
        """By how much the clock was set, in all, since this object was made."""
        ahead = self._difference()
        if abs(change := ahead - self._ahead) >= LEAST:
            log.warning("the clock was set by %.0f s", change.total_seconds())
            self._set += change
        self._ahead = ahead
        return self._set

    def _difference(self) -> timedelta:
        return timedelta(seconds=self._wall() - self._steady())


def moved(status: RunStatus, change: timedelta) -> RunStatus:
    """The status with its times as a clock shows them that was set by `change` since they were written."""
    times = {name: time + change for name in MOVED if (time := getattr(status, name)) is not None}
    return status.model_copy(update=times if change else {})
