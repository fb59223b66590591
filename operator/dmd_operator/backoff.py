"""The wait before the next attempt at a stage."""

from datetime import datetime, timedelta

FIRST_BACK_OFF = timedelta(seconds=10)
LONGEST_BACK_OFF = timedelta(minutes=5)
LONGEST_PREFLIGHT_BACK_OFF = timedelta(minutes=1)
"""A person who has just fixed what preflight complained of is waiting for it."""
SHORTEST_ATTEMPT = timedelta(seconds=10)
"""Attempts begin no closer together than this, so that losing every pod at once causes no storm."""


def back_off(retries: int, longest: timedelta = LONGEST_BACK_OFF) -> timedelta:
    """The wait before another attempt, doubled with each failure in a row.

    Args:
        retries: failures in a row, from 0: then there is no wait.
        longest: the longest wait.
    """
    if retries == 0:
        return timedelta()
    # Beyond a few doublings the bound holds anyway, and a power of thousands would not be a time.
    return min(FIRST_BACK_OFF * 2 ** min(retries - 1, 10), longest)


def next_attempt_time(now: datetime, created: datetime | None, wait: timedelta) -> datetime:
    """The time from which the next attempt may begin.

    Args:
        now: the time.
        created: when the last attempt was created; None: it was not seen, and may just have been.
        wait: the back-off, from now.
    """
    # It was created by the API server's clock, which may be ahead of this one.
    return max(now + wait, min(created or now, now) + SHORTEST_ATTEMPT)
