"""What is shown of a run while nothing changes."""

import io
import time

import pytest

from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmdctl.console import Console
from dmdctl.display import LASTING_SECONDS, OLD_SECONDS, REMINDER_SECONDS, BarDisplay, LineDisplay, describe
from dmdctl.waiting import waiting

LOADING = Progress(stage=Stage.DISTILL, activity="loading the teacher")
PATIENCE = 60.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lines:
    """A display of lines, and what it has written since one last looked."""

    def __init__(self) -> None:
        console = Console()
        console.file = self._file = io.StringIO()
        console.width = 200
        self.clock = Clock()
        self.display = LineDisplay(console, self.clock)

    def new(self) -> list[str]:
        text = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return text.splitlines()


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_line_says_what_a_run_is_doing_and_for_how_long_when_there_was_none_for_long(lines: Lines) -> None:
    display, clock = lines.display, lines.clock
    display.start(Stage.DISTILL)
    display.show(LOADING)
    assert lines.new() == ["distill: starting", "distill: loading the teacher"]
    clock.now += REMINDER_SECONDS - 1
    display.show(LOADING)
    display.remind()
    assert lines.new() == []
    clock.now += 1
    display.remind()
    display.remind()
    assert lines.new() == ["distill: loading the teacher (30s)"]
    clock.now += REMINDER_SECONDS
    display.show(LOADING.model_copy(update={"activity": "trying the teacher"}))
    display.remind()
    assert lines.new() == ["distill: trying the teacher"]
    display.finish(Stage.DISTILL, "done")
    clock.now += 10 * REMINDER_SECONDS
    display.remind()
    assert lines.new() == ["distill: done (1m00s)"]


def test_steps_that_move_make_a_line_now_and_then_and_ones_that_do_not_say_so(lines: Lines) -> None:
    display, clock = lines.display, lines.clock
    training = Progress(stage=Stage.DISTILL, activity="training", total=100, unit="generator updates")
    display.start(Stage.DISTILL)
    for step in range(1, 41):
        clock.now += 1
        display.show(training.model_copy(update={"step": step}))
        display.remind()
    assert [line.split()[1] for line in lines.new()[1:]] == ["1/100", "16/100", "31/100"]
    clock.now += 100
    display.remind()
    assert lines.new() == ["distill: 40/100 generator updates · training (unchanged for 1m40s)"]


def test_a_stage_that_has_reported_nothing_is_starting(lines: Lines) -> None:
    lines.display.start(Stage.PREPARE)
    lines.clock.now += 45
    lines.display.remind()
    assert lines.new() == ["pairs: starting", "pairs: starting (45s)"]


def test_lines_come_by_themselves(lines: Lines) -> None:
    with lines.display as display:
        display.show(LOADING)
        lines.new()
        lines.clock.now += 90
        until, seen = time.monotonic() + PATIENCE, []
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
            seen = lines.new()
        assert seen == ["distill: loading the teacher (1m30s)"]


def test_a_bar_counts_the_seconds_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console()
    console.file = file = io.StringIO()
    console.width = 200
    with BarDisplay(console) as display:
        display.show(LOADING.model_copy(update={"unchanged_seconds": LASTING_SECONDS}))
        until = time.monotonic() + PATIENCE
        while "loading the teacher (6s)" not in file.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "loading the teacher (5s)" in file.getvalue()
    assert "loading the teacher (6s)" in file.getvalue()


def test_a_bar_s_time_that_is_left_comes_from_the_steps_that_were_seen() -> None:
    clock = Clock()
    console = Console()
    console.file = written = io.StringIO()
    console.width = 200
    display = BarDisplay(console, clock=clock)

    def left(step: int) -> str:
        display.show(Progress(stage=Stage.PREPARE, step=step, total=1000, activity="making pairs"))
        written.seek(0)
        written.truncate()
        console.print(display._bars.get_renderable())
        (line,) = (line for line in written.getvalue().splitlines() if "making pairs" in line)
        return line.partition("left")[0].split()[-1] if "left" in line else ""

    display.start(Stage.PREPARE)
    clock.now += 30  # importing
    assert left(600) == ""  # an earlier attempt's
    clock.now += 10
    assert left(700) == "30s"
    clock.now += 10
    assert left(800) == "20s"
    display.finish(Stage.PREPARE, "done")
    display.start(Stage.DISTILL)
    assert left(0) == ""


@pytest.mark.parametrize(
    ("step", "seconds", "shown"),
    [
        (0, None, "evaluating"),
        (0, LASTING_SECONDS - 0.1, "evaluating"),
        (0, 75.0, "evaluating (1m15s)"),
        (7, OLD_SECONDS - 0.1, "evaluating"),
        (7, 75.0, "evaluating (unchanged for 1m15s)"),
    ],
)
def test_what_takes_long_is_described_with_its_time(step: int, seconds: float | None, shown: str) -> None:
    progress = Progress(stage=Stage.DISTILL, activity="evaluating", step=step, unchanged_seconds=seconds)
    assert describe(progress) == shown


def test_a_command_that_waits_before_there_is_a_run_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmdctl.waiting.LASTING_SECONDS", 0.01)
    console = Console()
    console.file = file = io.StringIO()
    with waiting(console, "asking the API server"):
        until = time.monotonic() + PATIENCE
        while not file.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert file.getvalue() == "asking the API server (0s)\n"


def test_what_is_done_at_once_needs_no_line() -> None:
    console = Console()
    console.file = file = io.StringIO()
    with waiting(console, "asking the API server"):
        pass
    assert file.getvalue() == ""
