"""The ends of an attempt, a stage and a run: their status, what is deleted and what is reported."""

import math
from dataclasses import replace
from datetime import timedelta

from dmd_api.stages import Stage, stages
from dmd_api.status import STAGE_DONE, RunStatus
from dmd_operator import deadline
from dmd_operator.backoff import LONGEST_PREFLIGHT_BACK_OFF, back_off, next_attempt_time
from dmd_operator.decision import Decision, Event, sooner
from dmd_operator.observed import ObservedJob
from dmd_operator.outcomes import Kind, Outcome
from dmd_operator.run import Run
from dmd_operator.stalls import short

RESTARTS_EXHAUSTED = "RestartsExhausted"
"""The one reason of a failure that more restarts can undo."""
DISRUPTIONS_IN_A_ROW = 3
"""From this one on, disruptions without progress between them count."""


def attempt_failed(run: Run, job: ObservedJob | None, outcome: Outcome) -> Decision:
    """Ends the present attempt, which has not completed its stage: another one follows, or the run fails.

    Args:
        run: the run.
        job: the attempt's Job, where there still is one.
        outcome: how it ended.
    """
    stage, number = run.status.stage, run.status.attempt
    run, outcome = _bounded(run.update(ended_attempt=number), outcome)
    if outcome.decisive and stage is not Stage.PREFLIGHT:
        return run_failed(run, str(outcome.kind), outcome.message)
    wait = timedelta()
    if stage is Stage.PREFLIGHT and outcome.kind is not Kind.DISRUPTED:
        # What preflight finds heals when its cause goes, whoever mends it: it is tried again for as long as that takes.
        run = run.update(retries=run.status.retries + 1)
        run = run.mark(STAGE_DONE[stage], "False", str(outcome.kind), outcome.message)
        wait = back_off(run.status.retries, LONGEST_PREFLIGHT_BACK_OFF)
    elif outcome.kind is not Kind.DISRUPTED:
        run = run.update(retries=run.status.retries + 1, failures=run.status.failures + 1)
        if run.status.failures > run.spec.max_restarts:
            return _restarts_exhausted(run, outcome)
        wait = back_off(run.status.retries)
    at = next_attempt_time(run.now, job.created if job is not None else None, wait)
    run = run.update(next_attempt_time=at, last_progress_time=None)
    run = run.mark("Healthy", "False", str(outcome.kind), outcome.message)
    message = f"{stage}: attempt {number} ended: {outcome.message}{_resumes(run.status)}"
    return Decision(
        run.status,
        delete=at_work((job,) if job is not None else ()),
        events=(Event(str(outcome.kind), message, warning=True),),
        again=max(at - run.now, timedelta(seconds=1)),
    )


def stage_done(run: Run, outcome: Outcome) -> Decision:
    """Latches the present stage, which never runs again: the next one is to begin, or the run is complete."""
    stage, condition = run.status.stage, STAGE_DONE[run.status.stage]
    run = run.mark(condition, "True", condition, f"attempt {run.status.attempt}")
    run = run.update(
        attempt=0,
        ended_attempt=0,
        retries=0,
        disruptions=0,
        next_attempt_time=None,
        last_progress_time=None,
        activity=None,
        warnings=(),
        step=None,
        total=None,
        unit=None,
        progress=None,
        eta=None,
    )
    note = f"; {outcome.message}" if outcome.kind is Kind.DONE and outcome.message else ""
    event = Event(condition, f"{stage} is done{note}")
    order = stages(run.manifest)
    if stage is not order[-1]:
        return Decision(run.update(stage=order[order.index(stage) + 1]).status, events=(event,))
    complete = _run_complete(run, outcome)
    return replace(complete, events=(event, *complete.events))


def run_failed(run: Run, reason: str, message: str) -> Decision:
    """Ends the run without a model."""
    run = run.mark("Failed", "True", reason, message).unmark_stalled().mark("Healthy", "False", reason, message)
    run = _over(run, "Failed")
    return Decision(
        run.status,
        delete=at_work(run.jobs),
        events=(Event(reason, message, warning=True),),
        again=deadline.until_expiry(run),
    )


def run_over(run: Run) -> Decision:
    """Waits for the end of a finished run's life."""
    left = deadline.until_expiry(run)
    if left is not None and left <= timedelta():
        return Decision(run.status, delete_resource=True)
    jobs = run.jobs if run.status.is_true("Failed") else ()
    again = run.settings.gone_after if any(not job.over for job in jobs) else None
    return Decision(run.status, delete=at_work(jobs), again=sooner(left, again))


def may_reopen(run: Run) -> bool:
    """True for a run that used up its restarts and was given more."""
    failed = run.status.condition("Failed")
    return (
        failed is not None
        and failed.status == "True"
        and failed.reason == RESTARTS_EXHAUSTED
        and run.status.failures <= run.spec.max_restarts
    )


def reopened(run: Run) -> Run:
    """Reopens a run that may go on."""
    run = run.update(completion_time=None, retries=0, next_attempt_time=None)
    return run.mark("Failed", "False", "MaxRestartsRaised")


def _bounded(run: Run, outcome: Outcome) -> tuple[Run, Outcome]:
    """The outcome, and a failure where disruptions follow each other without progress between them.

    What comes again and again is no accident: it would go on for ever, uncounted.
    """
    if outcome.kind is not Kind.DISRUPTED:
        return run.update(disruptions=0), outcome
    run = run.update(disruptions=run.status.disruptions + 1)
    if run.status.disruptions < DISRUPTIONS_IN_A_ROW:
        return run, outcome
    message = f"{outcome.message}; {run.status.disruptions} disruptions in a row without progress count as failures"
    return run, Outcome(Kind.FAILED, message)


def _restarts_exhausted(run: Run, outcome: Outcome) -> Decision:
    counted = f"{run.status.failures} attempts failed, maxRestarts is {run.spec.max_restarts}"
    remedy = "fix the cause and raise maxRestarts to continue"
    return run_failed(run, RESTARTS_EXHAUSTED, f"{counted}; the last: {outcome.message}; {remedy}")


def _run_complete(run: Run, outcome: Outcome) -> Decision:
    passed, result = outcome.kind is not Kind.GATES_FAILED, outcome.result or {}
    gates = outcome.message or ("every gate holds" if run.spec.gates else "there are no gates")
    if passed:
        run = run.mark("GatesPassed", "True", "GatesPassed", gates)
    else:
        run = run.mark("GatesPassed", "False", "GatesFailed", gates)
    version = result.get("modelVersion")
    if version is not None:
        run = run.update(model_version=str(version), model_uri=f"models:/{run.manifest.registered_model}/{version}")
    if (published := result.get("published")) is not None:
        run = run.update(published=str(published))
    if outcome.result is None:
        gone = "evaluate is done, but its result is gone with its pods: the model registry has the version"
        run = run.mark("Registered", "Unknown", "ResultGone", gone)
    else:
        run = run.mark("Registered", "True", "Registered", f"model version {version}" if version is not None else "")
    fid = result.get("fid")
    if isinstance(fid, int | float) and math.isfinite(fid):
        run = run.update(fid=short(float(fid)))
    message = "registered" if passed else "registered without its alias: a gate failed"
    run = run.mark("Complete", "True", "Complete", message).mark("Healthy", "True", "Complete")
    run = _over(run, "Complete")
    return Decision(run.status, events=(Event("Complete", message),), again=deadline.until_expiry(run))


def _over(run: Run, phase: str) -> Run:
    seconds = deadline.active(run).total_seconds()
    return run.update(phase=phase, completion_time=run.now, active_seconds=seconds, active_since=None)


def at_work(jobs: tuple[ObservedJob, ...]) -> tuple[str, ...]:
    """The names of those whose pods would work on unless they are deleted."""
    return tuple(job.name for job in jobs if not job.over and not job.ends_itself)


def _resumes(status: RunStatus) -> str:
    """Says where the next attempt at distilling begins, as far as is known."""
    if status.stage is not Stage.DISTILL or not status.step:
        return ""
    if status.checkpoint_step is None:
        return f"; it had reached step {status.step}"
    of = f" of {status.total}" if status.total else ""
    return f"; going on from step {status.checkpoint_step}{of}"
