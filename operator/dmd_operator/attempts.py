"""Begins an attempt at a stage, follows it while it runs, and puts off one that is refused."""

from datetime import timedelta

from dmd_api.stages import Stage
from dmd_api.status import PHASES, STAGE_DONE
from dmd_operator import health, stalls, waits
from dmd_operator.backoff import LONGEST_BACK_OFF, SHORTEST_ATTEMPT, back_off
from dmd_operator.decision import Decision, Event, sooner
from dmd_operator.endings import at_work, attempt_failed
from dmd_operator.observed import ObservedJob
from dmd_operator.outcomes import Kind, Outcome
from dmd_operator.run import Run


def begin(run: Run) -> Decision:
    """Begins the next attempt, once nothing of the last one works on and its back-off is over."""
    if any(not job.over for job in run.jobs):
        # Whoever still works on the last attempt could write beside the next.
        return Decision(run.status, delete=at_work(run.jobs), again=run.settings.gone_after)
    at = run.status.next_attempt_time
    # No wait is longer: a time further away is by a clock that was ahead.
    if at is not None and run.now < at <= run.now + LONGEST_BACK_OFF + SHORTEST_ATTEMPT:
        return Decision(run.status, again=at - run.now)
    stage, last = run.status.stage, run.status.attempt
    # The last failed Job stays, for its pods' logs.
    old = tuple(job.name for job in run.jobs if job.stage is stage and job.attempt < last and not job.deleting)
    run = run.update(
        attempt=last + 1,
        phase=PHASES[stage],
        activity=None,
        last_progress_time=None,
        next_attempt_time=None,
        warnings=(),
    )
    # What an earlier attempt or stage was like says nothing of this one.
    run = run.mark("Healthy", "Unknown", "Starting", f"{stage}: attempt {last + 1} is starting")
    return Decision(
        run.status,
        create=(stage, last + 1),
        delete=old,
        events=(Event("AttemptCreated", f"{stage}: attempt {last + 1}"),),
        again=run.settings.progress_every,
    )


def refused(run: Run, message: str) -> Decision:
    """Puts off what the API server did not create: a mistake in a podTemplate, a quota, a webhook that is away.

    It is tried again with back-off, for as long as it takes, under the same number, and not counted: no work was lost.
    """
    stage, number = run.status.stage, run.status.attempt
    run = run.mark("Healthy", "False", "Refused", message)
    event = Event("Refused", f"{stage}: attempt {number} could not be created: {message}", warning=True)
    if run.present_job is not None:  # its Service is missing, and its workers wait for it
        return Decision(run.status, events=(event,), again=back_off(1))
    wait = back_off(run.status.retries + 1)
    run = run.update(attempt=number - 1, retries=run.status.retries + 1, next_attempt_time=run.now + wait)
    return Decision(run.status, events=(event,), again=wait)


def follow(run: Run, job: ObservedJob) -> Decision:
    """Notes how the present attempt goes, and ends it if it hangs."""
    run, events = health.with_health(stalls.with_progress(run, job), job)
    left = stalls.until_stalled(run)
    if left is not None and left <= timedelta():
        minutes = round(run.settings.stall_timeout.total_seconds() / 60)
        message = f"its step has not moved for {minutes} minutes"
        return attempt_failed(run.mark("Stalled", "True", "NoProgress", message), job, Outcome(Kind.FAILED, message))
    if (wait := waits.wait_of(job, run.now)) is not None:
        run = _waiting(run, job, wait)
    elif job.running:
        run = _running(run, job)
    # Somebody deleted it, or its creation failed in between: what exists already is kept.
    meets = job.stage.meets(job.stage.size(run.spec).nodes)
    missing = (job.stage, job.attempt) if meets and job.has_service is False and not job.deleting else None
    return Decision(run.status, create=missing, events=events, again=sooner(run.settings.progress_every, left))


def _waiting(run: Run, job: ObservedJob, wait: waits.Wait) -> Run:
    run = run.mark("Healthy", "Unknown", wait.reason, wait.message)
    if job.stage is Stage.PREFLIGHT and wait.reason in waits.REMEDIES:
        run = run.mark(STAGE_DONE[job.stage], "False", wait.reason, wait.message)
    return run


def _running(run: Run, job: ObservedJob) -> Run:
    since = run.status.last_progress_time or run.now
    if not stalls.was_seen(run.status) and run.now - since >= run.settings.stall_timeout:
        message = (
            f"{job.stage}: attempt {job.attempt} runs, but its progress cannot be seen, and a stall would go unnoticed"
        )
        remedy = "does a network policy keep the operator from its pods?"
        run = run.mark("Healthy", "Unknown", "ProgressUnknown", f"{message}; {remedy}")
    elif run.status.warnings:
        run = run.mark("Healthy", "False", health.COLLAPSING, "; also: ".join(run.status.warnings))
    else:
        run = run.mark("Healthy", "True", "Running", f"{job.stage}: attempt {job.attempt} runs")
    return run.unmark_stalled()
