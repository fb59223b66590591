"""Suspends a run and resumes it."""

from dataclasses import replace

from dmd_operator import deadline
from dmd_operator.decision import Decision, Event
from dmd_operator.endings import stage_done
from dmd_operator.outcomes import Kind, Outcome, result_of
from dmd_operator.run import Run


def suspended(run: Run) -> Decision:
    """Ends the present attempt, and keeps the clock of the deadline still."""
    if run.status.active_since is not None:
        run = run.update(active_seconds=deadline.active(run).total_seconds(), active_since=None)
    job = run.present_job
    events: tuple[Event, ...] = ()
    if job is not None and job.complete and run.status.attempt > run.status.ended_attempt:
        # What completed before the wish was seen is done: only the next stage is not begun.
        done = stage_done(run, Outcome(Kind.DONE, result=result_of(job)))
        if done.status.completion_time is not None:
            return done
        run, events = replace(run, status=done.status), done.events
    else:
        run = run.update(ended_attempt=run.status.attempt, next_attempt_time=None)
    if not run.status.is_true("Suspended"):
        events = (*events, Event("Suspended", "set spec.suspend to false to resume"))
    run = run.mark("Suspended", "True", "Suspended", "spec.suspend is true").unmark_stalled()
    run = run.mark("Healthy", "Unknown", "Suspended", "nothing runs until it is resumed")
    run = run.update(phase="Suspended", last_progress_time=None)
    going = [job for job in run.jobs if not job.over]
    return Decision(
        run.status,
        delete=tuple(job.name for job in going if not job.deleting),  # at once, whatever ends by itself
        events=events,
        again=run.settings.gone_after if going else None,
    )


def resumed(run: Run) -> Run:
    """The run as one that is not suspended."""
    if run.status.active_since is None:
        run = run.update(active_since=run.now)
    return run.mark("Suspended", "False", "Resumed") if run.status.is_true("Suspended") else run
