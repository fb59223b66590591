"""The decision: from what is wanted, known and observed to what is to be done. Pure: no cluster, no clock, no memory.

This file only strings the rules together; each is in a file of its own: `outcomes`, `attempts`, `waits`, `stalls`,
`health`, `deadline`, `conditions`. What it returns may be applied by half or not at all: the next look leads to the
same end.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import Stage
from dmd_api.status import RunStatus
from dmd_operator import attempts, deadline, health, stalls, waits
from dmd_operator.conditions import STAGE_DONE, with_condition
from dmd_operator.observed import ObservedJob
from dmd_operator.outcomes import Kind, Outcome, outcome_of, result_of
from dmd_operator.run import Decision, Event, Run

RESTARTS_EXHAUSTED = "RestartsExhausted"
"""The one reason of a failure that more restarts can undo."""
_PHASES = {
    Stage.PREFLIGHT: "Preflight",
    Stage.PREPARE: "Preparing",
    Stage.DISTILL: "Distilling",
    Stage.EVALUATE: "Evaluating",
}


def decide(run: Run) -> Decision:
    """What follows from `run`."""
    run = replace(run, status=run.status.model_copy(update={"observed_generation": run.generation}))
    if run.status.completion_time is not None:
        if not _may_try_again(run):
            return _finished(run)
        run = replace(run, status=_reopened(run))
    if run.status.start_time is None:
        run = replace(run, status=run.status.model_copy(update={"start_time": run.now}))
    if run.manifest.spec.suspend:
        return _suspended(run)
    run = replace(run, status=_active(run))
    left = deadline.until_deadline(run.manifest.spec, run.status, run.now)
    # A run whose last Job completed in time is not failed for being looked at late: its end is dealt with first.
    decision = _look(run)
    if decision.status.completion_time is not None or left is None:
        return decision
    if left <= timedelta():
        message = f"active for longer than activeDeadlineSeconds ({run.manifest.spec.active_deadline_seconds})"
        return _failed(run, run.status, "DeadlineExceeded", f"{message}; what was done is kept in storage")
    return replace(decision, again=_sooner(decision.again, left))


def refused(run: Run, message: str) -> Decision:
    """The API server would not have the attempt that the status announces: a quota, a podTemplate with a mistake.

    It is told and tried again with back-off, for as long as it takes, and not counted: no work was lost.
    """
    stage, number = run.status.stage, run.status.attempt
    wait = attempts.back_off(run.status.retries + 1)
    status = run.status.model_copy(
        update={"ended_attempt": number, "retries": run.status.retries + 1, "next_attempt_time": run.now + wait}
    )
    status = _healthy(run, status, "False", "Refused", message)
    event = Event("Refused", f"{stage}: attempt {number} could not be created: {message}", warning=True)
    return Decision(status, events=(event,), again=wait)


def unusable(status: RunStatus, message: str, now: datetime, generation: int) -> Decision:
    """The manifest cannot be followed as it is; what already runs is left alone."""
    before = status.condition("Healthy")
    known = before is not None and before.message == message
    status = with_condition(
        status.model_copy(update={"observed_generation": generation}),
        "Healthy",
        "False",
        reason="InvalidManifest",
        message=message,
        now=now,
        generation=generation,
    )
    return Decision(status, events=() if known else (Event("InvalidManifest", message, warning=True),))


def stages(manifest: DMDDistillation) -> list[Stage]:
    """The stages that a run has: without a regression there are no pairs to prepare."""
    return [stage for stage in Stage if stage is not Stage.PREPARE or manifest.spec.method.regression is not None]


def _look(run: Run) -> Decision:
    """The present stage of a run that is active and not finished."""
    status, now = run.status, run.now
    job = _present_job(run)
    if status.attempt > status.ended_attempt:
        if job is None:
            return _ended(run, None, Outcome(Kind.DISRUPTED, "its Job is gone"))
        if outcome := outcome_of(job):
            return _ended(run, job, outcome)
        return _goes_on(run, job)
    # Between attempts: whoever still works on the last one could write beside the next.
    if any(not job.over for job in run.jobs):
        return Decision(status, delete=_to_delete(run.jobs), again=run.settings.gone_after)
    if status.next_attempt_time is not None and now < status.next_attempt_time:
        return Decision(status, again=status.next_attempt_time - now)
    return _next_attempt(run)


def _next_attempt(run: Run) -> Decision:
    stage, number = run.status.stage, run.status.attempt + 1
    status = run.status.model_copy(
        update={
            "attempt": number,
            "phase": _PHASES[stage],
            "activity": None,
            "last_progress_time": None,
            "next_attempt_time": None,
            "warnings": (),
        }
    )
    # The last failed Job stays, for its pods' logs.
    old = tuple(
        job.name for job in run.jobs if job.stage is stage and job.attempt < run.status.attempt and not job.deleting
    )
    event = Event("AttemptCreated", f"{stage}: attempt {number}")
    return Decision(status, create=(stage, number), delete=old, events=(event,), again=run.settings.progress_every)


def _goes_on(run: Run, job: ObservedJob) -> Decision:
    status = stalls.with_progress(run.status, job, run.progress, run.now)
    status, events = health.with_health(status, job, run.progress)
    left = stalls.until_stalled(status, run.settings.stall_timeout, run.now)
    if left is not None and left <= timedelta():
        minutes = round(run.settings.stall_timeout.total_seconds() / 60)
        message = f"its step has not moved for {minutes} minutes"
        status = with_condition(
            status, "Stalled", "True", reason="NoProgress", message=message, now=run.now, generation=run.generation
        )
        return _ended(replace(run, status=status), job, Outcome(Kind.FAILED, message))
    if (wait := waits.wait_of(job, run.now)) is not None:
        status = _healthy(run, status, "Unknown", wait.reason, wait.message)
        if job.stage is Stage.PREFLIGHT and wait.reason in waits.REMEDIES:
            status = with_condition(
                status,
                STAGE_DONE[job.stage],
                "False",
                reason=wait.reason,
                message=wait.message,
                now=run.now,
                generation=run.generation,
            )
    elif job.running:
        since = status.last_progress_time or run.now
        if not stalls.was_seen(status) and run.now - since >= run.settings.stall_timeout:
            message = f"{job.stage}: attempt {job.attempt} runs, but its progress is not seen, nor would a stall be"
            remedy = "does a network policy keep the operator from its pods?"
            status = _healthy(run, status, "Unknown", "ProgressUnknown", f"{message}; {remedy}")
        elif status.warnings:
            status = _healthy(run, status, "False", health.COLLAPSING, "; also: ".join(status.warnings))
        else:
            status = _healthy(run, status, "True", "Running", f"{job.stage}: attempt {job.attempt} runs")
        status = _not_stalled(run, status)
    return Decision(status, events=events, again=_sooner(run.settings.progress_every, left))


def _ended(run: Run, job: ObservedJob | None, outcome: Outcome) -> Decision:
    """Deals with the end of the present attempt, once."""
    stage, number = run.status.stage, run.status.attempt
    if outcome.kind is Kind.DONE or (outcome.kind is Kind.GATES_FAILED and stage is Stage.EVALUATE):
        return _stage_done(run, outcome)
    status = run.status.model_copy(update={"ended_attempt": number})
    if outcome.kind in {Kind.BAD_INPUT, Kind.DIVERGED, Kind.COLLAPSED} and stage is not Stage.PREFLIGHT:
        return _failed(run, status, str(outcome.kind), outcome.message)
    if outcome.kind is Kind.DISRUPTED:
        wait = attempts.back_off(0)
    elif stage is Stage.PREFLIGHT:
        # What preflight finds heals when its cause goes, whoever mends it: it is tried again for as long as that takes.
        status = status.model_copy(update={"retries": status.retries + 1})
        wait = attempts.back_off(status.retries, attempts.LONGEST_PREFLIGHT_BACK_OFF)
        status = with_condition(
            status,
            STAGE_DONE[stage],
            "False",
            reason=str(outcome.kind),
            message=outcome.message,
            now=run.now,
            generation=run.generation,
        )
    else:
        status = status.model_copy(update={"retries": status.retries + 1, "failures": status.failures + 1})
        if status.failures > run.manifest.spec.max_restarts:
            message = f"{status.failures} attempts failed, maxRestarts is {run.manifest.spec.max_restarts}; the last: "
            remedy = "; mend the cause and raise maxRestarts to go on"
            return _failed(run, status, RESTARTS_EXHAUSTED, message + outcome.message + remedy)
        wait = attempts.back_off(status.retries)
    at = attempts.next_attempt_time(run.now, job.created if job is not None else None, wait)
    status = status.model_copy(update={"next_attempt_time": at, "last_progress_time": None})
    status = _healthy(run, status, "False", str(outcome.kind), outcome.message)
    event = Event(str(outcome.kind), f"{stage}: attempt {number} ended: {outcome.message}{_from(status)}", True)
    return Decision(
        status,
        delete=_to_delete((job,) if job is not None else ()),
        events=(event,),
        again=max(at - run.now, timedelta(seconds=1)),
    )


def _stage_done(run: Run, outcome: Outcome) -> Decision:
    """Latches the present stage and goes on to the next at once."""
    latched = _latched(run, outcome)
    if latched.status.completion_time is not None:
        return latched
    after = _look(replace(run, status=latched.status))
    return replace(after, events=(*latched.events, *after.events))


def _latched(run: Run, outcome: Outcome) -> Decision:
    """The present stage is done and never runs again: the next one is to begin, or the run is complete."""
    stage, result = run.status.stage, outcome.result or {}
    kind = STAGE_DONE[stage]
    status = with_condition(
        run.status,
        kind,
        "True",
        reason=kind,
        message=f"attempt {run.status.attempt}",
        now=run.now,
        generation=run.generation,
    )
    event = Event(kind, f"{stage} is done")
    status = status.model_copy(
        update={
            "attempt": 0,
            "ended_attempt": 0,
            "retries": 0,
            "next_attempt_time": None,
            "last_progress_time": None,
            "activity": None,
            "warnings": (),
            "step": None,
            "total": None,
            "unit": None,
            "progress": None,
            "eta": None,
        }
    )
    following = stages(run.manifest)
    if stage is not following[-1]:
        status = status.model_copy(update={"stage": following[following.index(stage) + 1]})
        return Decision(status, events=(event,))
    passed = outcome.kind is not Kind.GATES_FAILED
    status = with_condition(
        status,
        "GatesPassed",
        "True" if passed else "False",
        reason="GatesPassed" if passed else "GatesFailed",
        message=outcome.message or ("every gate holds" if run.manifest.spec.gates else "there are no gates"),
        now=run.now,
        generation=run.generation,
    )
    version = result.get("modelVersion")
    if version is not None:
        uri = f"models:/{run.manifest.registered_model}/{version}"
        status = status.model_copy(update={"model_version": str(version), "model_uri": uri})
    status = with_condition(
        status,
        "Registered",
        "True",
        reason="Registered",
        message=f"model version {version}" if version is not None else "",
        now=run.now,
        generation=run.generation,
    )
    fid = result.get("fid")
    if isinstance(fid, int | float):
        status = status.model_copy(update={"fid": stalls.short(float(fid))})
    message = "registered" if passed else "registered without its alias: a gate failed"
    status = with_condition(
        status, "Complete", "True", reason="Complete", message=message, now=run.now, generation=run.generation
    )
    status = _over(run, _healthy(run, status, "True", "Complete", ""), "Complete")
    return Decision(
        status,
        events=(event, Event("Complete", message)),
        again=deadline.until_expiry(run.manifest.spec, status, run.now),
    )


def _failed(run: Run, status: RunStatus, reason: str, message: str) -> Decision:
    status = with_condition(
        status, "Failed", "True", reason=reason, message=message, now=run.now, generation=run.generation
    )
    status = _over(run, _healthy(run, _not_stalled(run, status), "False", reason, message), "Failed")
    expiry = deadline.until_expiry(run.manifest.spec, status, run.now)
    return Decision(status, delete=_to_delete(run.jobs), events=(Event(reason, message, warning=True),), again=expiry)


def _finished(run: Run) -> Decision:
    """A run that is over: nothing but its time to live."""
    left = deadline.until_expiry(run.manifest.spec, run.status, run.now)
    if left is not None and left <= timedelta():
        return Decision(run.status, delete_resource=True)
    going = run.jobs if run.status.is_true("Failed") else ()
    again = run.settings.gone_after if any(not job.over for job in going) else None
    return Decision(run.status, delete=_to_delete(going), again=_sooner(left, again))


def _suspended(run: Run) -> Decision:
    """Ends the present attempt, and keeps the clock of the deadline still."""
    status = run.status
    if status.active_since is not None:
        seconds = deadline.active(status, run.now).total_seconds()
        status = status.model_copy(update={"active_seconds": seconds, "active_since": None})
    job = _present_job(run)
    events: tuple[Event, ...] = ()
    if job is not None and job.complete and status.attempt > status.ended_attempt:
        # What completed before the wish was seen is done: only the next stage is not begun.
        latched = _latched(replace(run, status=status), Outcome(Kind.DONE, result=result_of(job)))
        if latched.status.completion_time is not None:
            return latched
        status, events = latched.status, latched.events
    else:
        status = status.model_copy(update={"ended_attempt": status.attempt, "next_attempt_time": None})
    told = status.is_true("Suspended")
    status = with_condition(
        status,
        "Suspended",
        "True",
        reason="Suspended",
        message="spec.suspend is true",
        now=run.now,
        generation=run.generation,
    )
    status = _healthy(run, _not_stalled(run, status), "Unknown", "Suspended", "nothing runs until it is resumed")
    status = status.model_copy(update={"phase": "Suspended", "last_progress_time": None})
    going = [job for job in run.jobs if not job.over]
    return Decision(
        status,
        delete=tuple(job.name for job in going if not job.deleting),  # at once, whatever ends by itself
        events=events if told else (*events, Event("Suspended", "set spec.suspend to false to go on")),
        again=run.settings.gone_after if going else None,
    )


def _active(run: Run) -> RunStatus:
    """The status of a run that is not suspended."""
    status = run.status
    if status.active_since is None:
        status = status.model_copy(update={"active_since": run.now})
    if status.is_true("Suspended"):
        status = with_condition(status, "Suspended", "False", reason="Resumed", now=run.now, generation=run.generation)
    return status


def _may_try_again(run: Run) -> bool:
    """A run that used up its restarts goes on when it is given more."""
    failed = run.status.condition("Failed")
    return (
        failed is not None
        and failed.status == "True"
        and failed.reason == RESTARTS_EXHAUSTED
        and run.status.failures <= run.manifest.spec.max_restarts
    )


def _reopened(run: Run) -> RunStatus:
    status = run.status.model_copy(update={"completion_time": None, "retries": 0, "next_attempt_time": None})
    return with_condition(status, "Failed", "False", reason="MaxRestartsRaised", now=run.now, generation=run.generation)


def _over(run: Run, status: RunStatus, phase: str) -> RunStatus:
    seconds = deadline.active(status, run.now).total_seconds()
    return status.model_copy(
        update={"phase": phase, "completion_time": run.now, "active_seconds": seconds, "active_since": None}
    )


def _to_delete(jobs: tuple[ObservedJob, ...]) -> tuple[str, ...]:
    """Those whose pods would otherwise work on."""
    return tuple(job.name for job in jobs if not job.over and not job.ends_itself)


def _present_job(run: Run) -> ObservedJob | None:
    wanted = (run.status.stage, run.status.attempt)
    return next((job for job in run.jobs if (job.stage, job.attempt) == wanted), None)


def _healthy(
    run: Run, status: RunStatus, value: Literal["True", "False", "Unknown"], reason: str, message: str
) -> RunStatus:
    return with_condition(
        status, "Healthy", value, reason=reason, message=message, now=run.now, generation=run.generation
    )


def _not_stalled(run: Run, status: RunStatus) -> RunStatus:
    if not status.is_true("Stalled"):
        return status
    return with_condition(status, "Stalled", "False", reason="AttemptEnded", now=run.now, generation=run.generation)


def _from(status: RunStatus) -> str:
    """Where a next attempt at distilling begins, as far as is known."""
    if status.stage is not Stage.DISTILL or not status.step:
        return ""
    if status.checkpoint_step is None:
        return f"; it had come to step {status.step}"
    of = f" of {status.total}" if status.total else ""
    return f"; going on from step {status.checkpoint_step}{of}"


def _sooner(first: timedelta | None, second: timedelta | None) -> timedelta | None:
    both = [wait for wait in (first, second) if wait is not None]
    return min(both) if both else None
