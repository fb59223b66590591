"""Turns a resource's status and events into what a person sees of the run."""

import re
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rich.text import Text

from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Progress
from dmd_api.stages import Stage, stages_of
from dmd_api.status import STAGE_DONE, Condition, RunStatus
from dmd_api.text import neutral
from dmd_api.uris import masked
from dmdctl.console import one_line, warning
from dmdctl.display import Display

FAILURES = {
    "BadInput": ExitCode.BAD_INPUT,
    "TrainingDiverged": ExitCode.DIVERGED,
    "TrainingCollapsed": ExitCode.DIVERGED,
}
"""Failures that `dmdctl run` has an exit code for; all others end with 1."""
_ETA_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
SHORT = 60
"""Characters of a condition's message that fit beside a bar."""


def _now() -> datetime:
    return datetime.now(UTC)


class RunView:
    """Shows a run on a display, told of it as it changes.

    Args:
        display: bars or lines.
        hears: whether events are shown too; without them conditions say what went wrong.
        now: the clock.
    """

    def __init__(self, display: Display, *, hears: bool = True, now: Callable[[], datetime] = _now) -> None:
        self._display, self._now = display, now
        self.hears = hears
        self.status: RunStatus | None = None
        self._finished: set[Stage] = set()
        self._present: Stage | None = None
        self._conditions: dict[str, Condition] = {}
        self._said: set[str] = set()

    def see(self, resource: Mapping[str, Any]) -> bool:
        """Shows what is new; whether the run is over.

        Raises:
            BadInputError: another version's operator wrote the status.
        """
        status = read_status(resource)
        spec = resource["spec"]
        first, self.status = self.status is None, status
        if status.start_time is None:
            waiting = "waiting for an operator to take it up"
            self._display.show(Progress(stage=stages_of(spec)[0], activity=waiting))
            self._tell_conditions(status, joins=first)
            return False
        for stage in stages_of(spec):
            if stage in self._finished:
                continue
            if status.is_true(STAGE_DONE[stage]):
                self._display.finish(stage, done_note(stage, status, spec), took=_took(stage, status, spec))
                self._finished.add(stage)
                self._present = None
            elif stage is status.stage:
                if self._present is None:
                    began = _began(stage, status, spec)
                    self._display.start(stage, ago=max(0.0, (self._now() - began).total_seconds()))
                    self._present = stage
                if status.completion_time is None:
                    self._display.show(progress_of(status, self._now()))
        if status.completion_time is not None:
            if self._present is not None:
                failed = status.condition("Failed")
                self._display.fail(self._present, failed.reason if failed is not None else status.phase)
            return True
        self._tell_conditions(status, joins=first)
        return False

    def hear(self, event: Mapping[str, Any]) -> None:
        """Shows an event of the resource, if it is a warning that no line has said yet."""
        note = str(event.get("note") or event.get("reason") or "")
        if event.get("type") == "Warning" and not any(said in note for said in self._said):
            self._display.say(warning(note))

    def _tell_conditions(self, status: RunStatus, joins: bool) -> None:
        for kind in ("Suspended", "Stalled", "Healthy"):
            condition, before = status.condition(kind), self._conditions.get(kind)
            if condition is None or (before is not None and _same(condition, before)):
                continue
            self._conditions[kind] = condition
            text = condition_line(condition, before)
            # Once events are heard they say what went wrong, and more of it.
            if text is None or (kind == "Healthy" and condition.status == "False" and self.hears and not joins):
                continue
            if kind == "Healthy" and condition.status == "True":
                self._said.clear()  # what fails again is said again
            elif kind == "Healthy" and condition.message:
                self._said.add(condition.message)
            self._display.say(text)


def read_status(resource: Mapping[str, Any]) -> RunStatus:
    """The status; an empty one where no operator has written any.

    Raises:
        BadInputError: another version's operator wrote it.
    """
    try:
        return RunStatus.model_validate(resource.get("status") or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise BadInputError(
            f"{resource['metadata']['name']}: status.{where} is nothing this dmdctl knows ({problem['msg']}); "
            "use the operator's own version of it"
        ) from error


def progress_of(status: RunStatus, now: datetime) -> Progress:
    """The present stage's progress, as rank 0 would have said it.

    Args:
        status: of a run that is not over.
        now: the time.
    """
    runs = status.attempt > status.ended_attempt
    return Progress(
        stage=status.stage,
        activity=_activity(status, now),
        unchanged_seconds=_unchanged(status, now),
        step=status.step or 0,
        total=status.total or 0,
        unit=status.unit or "",
        attempt=max(1, status.attempt),
        eta_seconds=eta_seconds(status.eta) if status.eta and runs else None,
        # What was measured while distilling stays in the status, and says nothing of how fast images are drawn.
        images_per_second=status.images_per_second if status.step is not None else None,
        losses=status.losses if status.stage is Stage.DISTILL else {},
        warnings=list(status.warnings),
        fid=status.fid,
        best_fid=status.best_fid,
        best_step=status.best_step,
        mlflow_run=status.mlflow_run,
    )


def eta_seconds(text: str) -> float | None:
    """The seconds of a duration as the status has it: 45s, 12m, 3h5m, 2d4h."""
    parts = re.findall(r"(\d+)([dhms])", text)
    return float(sum(int(number) * _ETA_UNITS[unit] for number, unit in parts)) if parts else None


def done_note(stage: Stage, status: RunStatus, spec: Mapping[str, Any]) -> str:
    """The result of a finished stage, in a few words."""
    match stage:
        case Stage.PREFLIGHT:
            return "teacher, storage, tracking and data fit together"
        case Stage.PREPARE:
            return f"{_at(spec, 'method', 'regression', 'pairs')} pairs"
        case Stage.DISTILL:
            if status.best_fid is not None:
                return f"best FID {status.best_fid:.4g} at step {status.best_step}"
            return f"{_at(spec, 'training', 'generatorUpdates')} generator updates"
        case Stage.EVALUATE:
            return f"version {status.model_version}" if status.model_version else "registered"


def condition_line(condition: Condition, before: Condition | None) -> str | Text | None:
    """A line about a condition that changed; None where there is nothing to say."""
    message = condition.message or condition.reason
    match condition.type, condition.status:
        case "Suspended", "True":
            return warning("suspended; set spec.suspend to false to resume")
        case "Suspended", "False" if before is not None:
            return "resumed"
        case "Stalled", "True":
            return warning(f"stalled: {message}")
        case "Stalled", "False" if before is not None and before.status == "True":
            return "not stalled any more"
        case "Healthy", "False":
            return warning(message)
        case "Healthy", "Unknown":
            return warning(f"waiting: {message}")
        case "Healthy", "True" if before is not None and before.status != "True":
            return message
    return None


def exit_code(status: RunStatus) -> ExitCode:
    """The exit code of a command that saw the run to its end."""
    failed = status.condition("Failed")
    if failed is not None and failed.status == "True":
        return FAILURES.get(failed.reason, ExitCode.UNEXPECTED)
    gates = status.condition("GatesPassed")
    return ExitCode.GATES_FAILED if gates is not None and gates.status == "False" else ExitCode.DONE


def summary(resource: Mapping[str, Any], status: RunStatus) -> list[Text]:
    """The last lines on a run that is over: how it ended, the model's version, the MLflow run."""
    metadata = resource["metadata"]
    model, alias, uri = _registered(resource, status)
    run = f"{status.mlflow_run} at {uri}" if status.mlflow_run and uri else status.mlflow_run
    run = f"MLflow run {masked(status.mlflow_run_url) if status.mlflow_run_url else run}" if status.mlflow_run else ""
    code = exit_code(status)
    if status.is_true("Failed"):
        failed = status.condition("Failed")
        assert failed is not None
        logs = f"dmdctl logs {metadata['name']} -n {metadata['namespace']} --stage {status.stage}"
        cause = neutral(f" {failed.reason}: {failed.message}", "\n  ")  # the end of a log may be several lines
        lines = [Text.assemble(("failed:", "red"), cause), one_line(run), one_line(f"logs: {logs}")]
        return [line for line in lines if line]
    version = f"version {status.model_version} of {model}" if status.model_version else model
    if code == ExitCode.GATES_FAILED:
        gates = status.condition("GatesPassed")
        assert gates is not None
        return [
            one_line(gates.message or "a gate failed", style="yellow"),
            one_line(", ".join(part for part in (f"{version}, without the alias {alias}", run) if part)),
        ]
    done = ", ".join(part for part in (f"{version}, alias {alias}", status.published, run) if part)
    return [one_line(("complete:", "green"), f" {done}")]


def next_command(resource: Mapping[str, Any], status: RunStatus) -> Text | None:
    """A line with the command to go on with after a run that is complete."""
    if exit_code(status) != ExitCode.DONE:
        return None
    model, alias, uri = _registered(resource, status)
    tracking = ("--tracking", uri) if uri else ()
    return one_line(
        f"sample: {shlex.join(('dmdctl', 'sample', f'models:/{model}@{alias}', '--out', 'grid.png', *tracking))}"
    )


def _registered(resource: Mapping[str, Any], status: RunStatus) -> tuple[str, str, str]:
    """The registered model, its alias, and the tracking server, or nothing."""
    metadata, spec = resource["metadata"], resource["spec"]
    uri = masked(str(_at(spec, "tracking", "uri") or _at(status.resolved or {}, "tracking", "uri") or ""))
    model = str(_at(spec, "tracking", "registeredModel") or metadata["name"])
    return model, str(_at(spec, "tracking", "alias") or "champion"), uri


def _activity(status: RunStatus, now: datetime) -> str:
    attempt, wait = status.attempt, status.next_attempt_time
    if status.is_true("Suspended"):
        return "suspended"
    if attempt <= status.ended_attempt:
        if wait is not None and wait > now:
            return f"attempt {attempt + 1} at {wait.astimezone():%H:%M:%S}"
        return f"attempt {attempt + 1} follows"
    healthy = _waiting(status)
    if healthy is None:
        doing = status.activity or ("starting" if status.step is None else "")
    elif healthy.reason == "Starting":
        doing = "starting"
    else:
        doing = f"waiting: {_short(healthy.message or healthy.reason)}"
    return ", ".join(part for part in (f"attempt {attempt}" if attempt > 1 else "", doing) if part)


def _unchanged(status: RunStatus, now: datetime) -> float | None:
    """The seconds since it has been waiting, or since step, losses and speed were as the status says."""
    suspended, healthy = status.condition("Suspended"), _waiting(status)
    if suspended is not None and suspended.status == "True":
        since = suspended.last_transition_time
    elif status.attempt <= status.ended_attempt:
        return None
    elif healthy is not None:
        since = healthy.last_transition_time
    elif status.last_progress_time is not None:
        since = status.last_progress_time
    else:
        return None
    return max(0.0, (now - since).total_seconds())


def _waiting(status: RunStatus) -> Condition | None:
    """The condition that says why the present attempt does not run; None where it does."""
    healthy = status.condition("Healthy")
    return healthy if healthy is not None and healthy.status == "Unknown" else None


def _short(message: str) -> str:
    line = neutral(message)
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"


def _began(stage: Stage, status: RunStatus, spec: Mapping[str, Any]) -> datetime:
    """When the stage before it was done."""
    assert status.start_time is not None
    order = stages_of(spec)
    before = order[: order.index(stage)]
    times = [condition.last_transition_time for s in before if (condition := status.condition(STAGE_DONE[s]))]
    return times[-1] if times else status.start_time


def _took(stage: Stage, status: RunStatus, spec: Mapping[str, Any]) -> float:
    condition = status.condition(STAGE_DONE[stage])
    assert condition is not None
    return (condition.last_transition_time - _began(stage, status, spec)).total_seconds()


def _same(one: Condition, other: Condition) -> bool:
    return (one.status, one.reason, one.message) == (other.status, other.reason, other.message)


def _at(content: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of a manifest that may be of a newer version than the models here; None for nothing."""
    value: Any = content
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
