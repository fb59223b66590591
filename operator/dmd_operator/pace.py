"""The pace of many runs: how often each is asked for its progress, and its moving figures are written.

One run is followed every few seconds. A thousand at that pace would keep the API server busy with nothing else, and
people cannot read so fast: all of them share what an operator may ask and write in a second.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from dmd_api.status import RunStatus
from dmd_operator.run import Settings

LOOKS_PER_SECOND = 25.0
WRITES_PER_SECOND = 8.0
"""Statuses that are written for their moving figures alone."""
SHARES_OF_A_STALL = 10
"""A moved step is noticed, and `lastProgressTime` written, at least so often within the time that makes a stall."""
MOVING = ("step", "progress", "eta", "losses", "images_per_second", "activity", "last_progress_time")
"""The fields that a step moves: they say how far a run is, and nothing is decided by the last of their seconds."""


def paced(settings: Settings, runs: int) -> Settings:
    """The settings for this many runs that move."""
    slowest = settings.stall_timeout / SHARES_OF_A_STALL
    look = max(settings.progress_every, timedelta(seconds=runs / LOOKS_PER_SECOND))
    write = max(settings.write_every, timedelta(seconds=runs / WRITES_PER_SECOND))
    return replace(settings, progress_every=min(look, slowest), write_every=min(write, slowest))


def moving(status: RunStatus) -> dict[str, Any]:
    """The fields that a step moves."""
    return {name: getattr(status, name) for name in MOVING}


def only_moved(before: RunStatus, after: RunStatus) -> bool:
    """Returns whether nothing but moving fields differs, and none of them appears or goes away."""
    if before.model_copy(update=moving(after)) != after:
        return False
    return all((getattr(before, name) is None) == (getattr(after, name) is None) for name in MOVING)
