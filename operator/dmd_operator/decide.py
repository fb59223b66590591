"""Decides, from a run, what is to be done about it. Pure: no cluster, no clock, no memory.

This file only strings the rules together; each is in a file of its own: `suspension`, `attempts`, `outcomes`,
`endings`, `deadline`. A decision may be applied by half or not at all: the next look leads to the same end.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from dmd_api.status import RunStatus
from dmd_operator import attempts, conditions, deadline, endings, suspension
from dmd_operator.decision import Decision, Event, sooner
from dmd_operator.observed import ObservedJob
from dmd_operator.outcomes import Kind, Outcome, outcome_of
from dmd_operator.run import Run


def decide(run: Run) -> Decision:
    """Decides what is to be done about `run`."""
    decision = _decide(run)
    idle = tuple(job.name for job in run.jobs if job.over and job.has_service and job.name not in decision.delete)
    return replace(decision, delete_services=idle)


def _decide(run: Run) -> Decision:
    run = run.update(observed_generation=run.generation)
    if run.status.completion_time is not None:
        if not endings.may_reopen(run):
            return endings.run_over(run)
        run = endings.reopened(run)
    if run.status.start_time is None:
        run = run.update(start_time=run.now)
    if run.spec.suspend:
        return suspension.suspended(run)
    run = suspension.resumed(run)
    # A run whose last Job completed in time is not failed for being looked at late: its end is handled first.
    return _within_deadline(run, _stage(run))


def unusable(status: RunStatus, message: str, now: datetime, generation: int) -> Decision:
    """Reports a manifest that cannot be followed; whatever already runs is left alone."""
    before = status.condition("Healthy")
    known = before is not None and before.message == conditions.shown(message)
    status = status.model_copy(update={"observed_generation": generation})
    status = conditions.mark(status, "Healthy", "False", "InvalidManifest", message, now=now, generation=generation)
    return Decision(status, events=() if known else (Event("InvalidManifest", message, warning=True),))


def _stage(run: Run) -> Decision:
    """Decides about the present stage: its attempt has ended, is running, or is to begin."""
    if run.status.attempt <= run.status.ended_attempt:
        return attempts.begin(run)
    job = run.present_job
    outcome = outcome_of(job) if job is not None else Outcome(Kind.DISRUPTED, "its Job is gone")
    if outcome is not None:
        return _ended(run, job, outcome)
    assert job is not None, "one that is gone has ended"
    return attempts.follow(run, job)


def _ended(run: Run, job: ObservedJob | None, outcome: Outcome) -> Decision:
    """Handles the end of the present attempt, once; the next stage begins in the same look."""
    if not outcome.completes(run.status.stage):
        return endings.attempt_failed(run, job, outcome)
    done = endings.stage_done(run, outcome)
    if done.status.completion_time is not None:
        return done
    following = _stage(replace(run, status=done.status))
    return replace(following, events=(*done.events, *following.events))


def _within_deadline(run: Run, decision: Decision) -> Decision:
    """The decision, unless the run has been active for too long."""
    left = deadline.until_deadline(run)
    if decision.status.completion_time is not None or left is None:
        return decision
    if left <= timedelta():
        message = f"active for longer than activeDeadlineSeconds ({run.spec.active_deadline_seconds})"
        return endings.run_failed(run, "DeadlineExceeded", f"{message}; what was done is kept in storage")
    return replace(decision, again=sooner(decision.again, left))
