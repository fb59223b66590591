"""Training that runs and goes wrong: what rank 0 warns of becomes the condition Healthy, and an event a warning."""

from dmd_api.runtime import Progress
from dmd_api.status import RunStatus
from dmd_operator.observed import ObservedJob
from dmd_operator.run import Event

COLLAPSING = "Collapsing"
"""The reason of a run that is warned of by its own trainer."""


def with_health(status: RunStatus, job: ObservedJob, progress: Progress | None) -> tuple[RunStatus, tuple[Event, ...]]:
    """`status` with what rank 0 of `job` warns of, and an event for each warning that was not known.

    Measures change from look to look and a warning's text does not, so that a warning is told once for as long as it
    lasts. Where rank 0 does not answer, what it said last stands.
    """
    if progress is None or (progress.stage, progress.attempt) != (job.stage, job.attempt):
        return status, ()
    warnings = tuple(progress.warnings)
    events = tuple(Event(COLLAPSING, text, warning=True) for text in warnings if text not in status.warnings)
    return status.model_copy(update={"warnings": warnings}), events
