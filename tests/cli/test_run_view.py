"""From a status to what is shown, without a cluster."""

from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import pytest

from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Progress
from dmd_api.stages import Stage, stages_of
from dmd_api.status import RunStatus
from dmdctl.cluster.run_view import RunView, eta_seconds, exit_code, progress_of, read_status, summary
from dmdctl.display import describe

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "method": {"regression": {"pairs": 8192}},
    "training": {"generatorUpdates": 1500},
    "tracking": {"registeredModel": "digits", "alias": "champion"},
}


class Recorded:
    """A display that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        self.calls.append(("start", stage, ago))

    def show(self, progress: Progress) -> None:
        self.calls.append(("show", progress.stage, progress.step, progress.activity))

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        self.calls.append(("finish", stage, note, took))

    def fail(self, stage: Stage, note: str) -> None:
        self.calls.append(("fail", stage, note))

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def new(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls

    def said(self) -> list[str]:
        return [call[1] for call in self.new() if call[0] == "say"]


def condition(kind: str, value: str, reason: str, message: str = "", minute: int = 0) -> dict[str, Any]:
    at = (NOW + timedelta(minutes=minute)).isoformat()
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": at}


def resource(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    metadata = {"name": "digits", "namespace": "default", "uid": "u"}
    whole = {"startTime": NOW.isoformat(), **status, "conditions": list(conditions)}
    return {"metadata": metadata, "spec": SPEC, "status": whole}


def view(*, hears: bool = True) -> tuple[RunView, Recorded]:
    display = Recorded()
    return RunView(display, hears=hears, now=lambda: NOW + timedelta(minutes=10)), display


def test_a_watch_that_joins_shows_finished_stages_with_their_times_and_the_present_ones_age() -> None:
    seen, display = view()
    over = seen.see(
        resource(
            condition("PreflightPassed", "True", "PreflightPassed", minute=1),
            condition("Prepared", "True", "Prepared", minute=4),
            stage="distill",
            attempt=1,
            step=300,
            total=1500,
            progress="20%",
        )
    )
    assert not over
    assert display.new() == [
        ("finish", Stage.PREFLIGHT, "teacher, storage, tracking and data fit together", 60.0),
        ("finish", Stage.PREPARE, "8192 pairs", 180.0),
        ("start", Stage.DISTILL, 360.0),
        ("show", Stage.DISTILL, 300, ""),
    ]


def test_a_run_that_no_operator_has_seen_is_shown_to_wait() -> None:
    seen, display = view()
    fresh = {**resource(), "status": {}}
    seen.see(fresh)
    assert display.new() == [("show", Stage.PREFLIGHT, 0, "waiting for an operator to take it up")]


def test_without_a_regression_there_is_no_stage_of_pairs() -> None:
    assert Stage.PREPARE not in stages_of({"method": {"name": "DMD2"}})
    assert stages_of(SPEC) == list(Stage)


DISTILL = {"stage": "distill", "step": 30, "total": 1500, "unit": "generator updates", "progress": "2%"}
QUEUED = condition("Healthy", "Unknown", "Queued", "its queue has not admitted it")
STARTING = condition("Healthy", "Unknown", "Starting", "distill: attempt 1 is starting")
LONG = condition("Healthy", "Unknown", "Unschedulable", f"worker 0: {'0/3 nodes are available ' * 20}")


@pytest.mark.parametrize(
    ("status", "step", "total", "activity"),
    [
        ({"stage": "distill", "attempt": 1}, 0, 0, "starting"),
        ({**DISTILL, "attempt": 1}, 30, 1500, ""),
        ({**DISTILL, "attempt": 1, "activity": "training"}, 30, 1500, "training"),
        ({**DISTILL, "attempt": 3, "activity": "training"}, 30, 1500, "attempt 3, training"),
        ({**DISTILL, "attempt": 3, "endedAttempt": 3, "activity": "training"}, 30, 1500, "attempt 4 follows"),
        (
            {**DISTILL, "attempt": 2, "activity": "training", "conditions": [QUEUED]},
            30,
            1500,
            f"attempt 2, waiting: {QUEUED['message']}",
        ),
        ({"stage": "prepare", "attempt": 1, "conditions": [STARTING]}, 0, 0, "starting"),
        ({"stage": "prepare", "attempt": 1, "conditions": [LONG]}, 0, 0, f"waiting: {LONG['message'][:59]}…"),
        (
            {"stage": "prepare", "attempt": 2, "conditions": [condition("Suspended", "True", "Suspended")]},
            0,
            0,
            "suspended",
        ),
    ],
)
def test_progress_from_a_status(status: dict[str, Any], step: int, total: int, activity: str) -> None:
    progress = progress_of(RunStatus.model_validate(status), NOW)
    assert (progress.step, progress.total, progress.activity) == (step, total, activity)


def test_numbers_of_a_stage_are_not_shown_as_the_next_ones() -> None:
    status = RunStatus(stage=Stage.EVALUATE, attempt=1, images_per_second=5.0, losses={"regression": 1.0}, eta="5m")
    progress = progress_of(status, NOW)
    assert (progress.images_per_second, progress.losses, progress.eta_seconds) == (None, {}, 300)
    assert progress_of(status.model_copy(update={"ended_attempt": 1}), NOW).eta_seconds is None


def test_a_loss_that_is_not_finite_is_shown_as_such() -> None:
    written = {"stage": "distill", "attempt": 1, "losses": {"fake_score": None, "regression": 0.5}}
    progress = progress_of(RunStatus.model_validate(written), NOW)
    assert "fake nan · reg 0.5" in describe(progress)


def test_old_figures_say_how_old_they_are() -> None:
    status = RunStatus(stage=Stage.DISTILL, attempt=1, step=30, activity="training", last_progress_time=NOW)
    assert describe(progress_of(status, NOW + timedelta(seconds=10))) == "training"
    assert describe(progress_of(status, NOW + timedelta(seconds=95))) == "training (unchanged for 1m35s)"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"conditions": [QUEUED]}, f"waiting: {QUEUED['message']} (1m35s)"),
        ({"conditions": [condition("Suspended", "True", "Suspended")]}, "suspended (1m35s)"),
        ({"activity": "loading the teacher", "last_progress_time": NOW}, "loading the teacher (1m35s)"),
        ({"activity": "loading the teacher", "ended_attempt": 1, "last_progress_time": NOW}, "attempt 2 follows"),
    ],
)
def test_what_takes_long_says_for_how_long(fields: dict[str, Any], shown: str) -> None:
    status = RunStatus(stage=Stage.DISTILL, attempt=1, **fields)
    assert describe(progress_of(status, NOW + timedelta(seconds=95))) == shown


def test_the_time_of_the_next_attempt_is_shown_in_local_time() -> None:
    at = NOW + timedelta(seconds=40)
    status = RunStatus(stage=Stage.DISTILL, attempt=1, ended_attempt=1, next_attempt_time=at)
    assert progress_of(status, NOW).activity == f"attempt 2 at {at.astimezone():%H:%M:%S}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("12m", 720), ("1h5m", 3900), ("2d4h", 187_200), ("0s", 0), ("soon", None)],
)
def test_eta_as_the_operator_writes_it(text: str, seconds: float | None) -> None:
    assert eta_seconds(text) == seconds


def test_conditions_are_said_when_they_change_and_never_twice() -> None:
    seen, display = view()
    steps = [
        (condition("Healthy", "Unknown", "PodsWaiting", "worker 0: [no] node"), ["waiting: worker 0: [no] node"]),
        (condition("Healthy", "Unknown", "PodsWaiting", "worker 0: [no] node"), []),
        (condition("Healthy", "True", "Running", "distill: attempt 1 runs"), ["distill: attempt 1 runs"]),
        (condition("Healthy", "True", "Running", "distill: attempt 1 runs"), []),
        (condition("Stalled", "True", "NoProgress", "its step has not moved"), ["stalled: its step has not moved"]),
        (condition("Stalled", "False", "Progressing"), ["not stalled any more"]),
        (condition("Suspended", "True", "Suspended"), ["suspended; set spec.suspend to false to resume"]),
        (condition("Suspended", "False", "Resumed"), ["resumed"]),
    ]
    for change, lines in steps:
        seen.see(resource(change, stage="distill", attempt=1))
        said = display.said()
        assert len(said) == len(lines), (change, said)
        assert all(line in text for line, text in zip(lines, said, strict=True))


@pytest.mark.parametrize(("hears", "lines"), [(True, 1), (False, 1)])
def test_why_an_attempt_ended_is_said_by_its_event_or_else_by_the_condition(hears: bool, lines: int) -> None:
    seen, display = view(hears=hears)
    seen.see(resource(stage="distill", attempt=1))
    display.new()
    seen.see(resource(condition("Healthy", "False", "Disrupted", "worker 1 lost"), stage="distill", attempt=1))
    seen.hear({"type": "Normal", "note": "distill: attempt 1"})
    if hears:
        seen.hear({"type": "Warning", "note": "distill: attempt 1 ended: worker 1 lost; it had reached step 4"})
    assert len(display.said()) == lines


@pytest.mark.parametrize("hears", [True, False])
def test_a_run_that_collapses_is_said_to_once_and_its_bar_goes_on_saying_so(hears: bool) -> None:
    seen, display = view(hears=hears)
    warning = "the images of one condition become alike; raise spec.method.regression.weight"
    seen.see(resource(condition("Healthy", "True", "Running", "distill: attempt 1 runs"), **DISTILL, attempt=1))
    display.new()
    collapsing = resource(
        condition("Healthy", "False", "Collapsing", warning), **DISTILL, attempt=1, warnings=[warning]
    )
    for _ in range(2):
        seen.see(collapsing)
    if hears:
        seen.hear({"type": "Warning", "reason": "Collapsing", "note": warning})
    assert [warning in line for line in display.said()] == [True]
    assert "collapsing" in describe(progress_of(read_status(collapsing), NOW))
    joined, display = view()
    joined.see(collapsing)
    assert [warning in line for line in display.said()] == [True]


def test_the_same_failure_of_the_next_attempt_is_said_again() -> None:
    seen, display = view()
    failed = condition("Healthy", "False", "AttemptFailed", "the disk is full")
    event = {"type": "Warning", "note": "distill: attempt 1 ended: the disk is full"}
    seen.see(resource(failed, stage="distill", attempt=1, endedAttempt=1))
    assert len(display.said()) == 1
    seen.hear(event)  # what the condition has said when the watch began
    assert display.said() == []
    seen.see(resource(condition("Healthy", "True", "Running", "attempt 2 runs"), stage="distill", attempt=2))
    display.new()
    seen.see(resource(failed, stage="distill", attempt=2, endedAttempt=2))
    seen.hear(event)
    assert len(display.said()) == 1


def test_where_a_generator_was_published_is_told() -> None:
    uri = "hf://team/digits-onestep@0123abcd"
    run = resource(condition("GatesPassed", "True", "GatesPassed"), completionTime=NOW.isoformat(), published=uri)
    assert uri in "\n".join(map(str, summary(run, read_status(run))))


@pytest.mark.parametrize(
    ("conditions", "code", "line"),
    [
        ([condition("GatesPassed", "True", "GatesPassed")], ExitCode.DONE, "version 3 of digits, alias champion"),
        ([], ExitCode.DONE, "version 3 of digits"),
        (
            [condition("GatesPassed", "False", "GatesFailed", "gates failed: FID = 2")],
            ExitCode.GATES_FAILED,
            "version 3 of digits, without the alias champion, MLflow run abc at http://mlflow:5000",
        ),
        ([condition("Failed", "True", "BadInput", "m")], ExitCode.BAD_INPUT, "BadInput: m"),
        ([condition("Failed", "True", "TrainingDiverged", "m")], ExitCode.DIVERGED, "TrainingDiverged: m"),
        ([condition("Failed", "True", "TrainingCollapsed", "m")], ExitCode.DIVERGED, "TrainingCollapsed: m"),
        ([condition("Failed", "True", "RestartsExhausted", "m")], ExitCode.UNEXPECTED, "RestartsExhausted: m"),
        (
            [condition("Failed", "True", "DeadlineExceeded", "m")],
            ExitCode.UNEXPECTED,
            "logs: dmdctl logs digits -n default --stage distill",
        ),
        # It failed, was given more restarts, and went on to its end.
        (
            [condition("Failed", "False", "MaxRestartsRaised"), condition("GatesPassed", "True", "GatesPassed")],
            ExitCode.DONE,
            "complete",
        ),
    ],
)
def test_how_a_run_ended(conditions: list[dict[str, Any]], code: ExitCode, line: str) -> None:
    run = resource(
        *conditions,
        stage="distill",
        modelVersion="3",
        mlflowRun="abc",
        resolved={"tracking": {"uri": "http://mlflow:5000"}},
        completionTime=NOW.isoformat(),
    )
    status = read_status(run)
    assert exit_code(status) == code
    assert line in "\n".join(map(str, summary(run, status)))
    seen, _ = view()
    assert seen.see(run)


def test_a_failure_between_attempts_is_shown_on_the_stages_bar() -> None:
    seen, display = view()
    failed = condition("Failed", "True", "DeadlineExceeded", "too long")
    assert seen.see(resource(failed, stage="preflight", phase="Failed", completionTime=NOW.isoformat()))
    assert display.new() == [("start", Stage.PREFLIGHT, 600.0), ("fail", Stage.PREFLIGHT, "DeadlineExceeded")]


def test_a_status_of_another_version_is_an_error_with_words() -> None:
    with pytest.raises(BadInputError, match=r"digits: status\.stage is nothing this dmdctl knows"):
        read_status(resource(stage="polish"))
