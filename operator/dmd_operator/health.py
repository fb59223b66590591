"""Training that goes wrong: rank 0's warnings become the condition Healthy, and an event each."""

from dmd_operator.decision import Event
from dmd_operator.observed import ObservedJob
from dmd_operator.run import Run

COLLAPSING = "Collapsing"
"""The reason of a run whose own trainer warns of it."""


def with_health(run: Run, job: ObservedJob) -> tuple[Run, tuple[Event, ...]]:
    """The run with what rank 0 of `job` warns of, and an event for each warning that was not known.

    Measures change from look to look and a warning's text does not, so that a warning is reported once for as long as
    it lasts. Where rank 0 does not answer, what it said last stands.
    """
    progress = run.progress
    if progress is None or not job.shows(progress):
        return run, ()
    warnings = tuple(progress.warnings)
    events = tuple(Event(COLLAPSING, text, warning=True) for text in warnings if text not in run.status.warnings)
    return run.update(warnings=warnings), events
