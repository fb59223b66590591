"""Shows a run as it goes: a progress bar for each stage, or plain lines where there is no terminal.

What takes long is shown with the time that it has taken so far, also while nobody reports anything.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmdctl.console import Console, one_line, warning

LINE_SECONDS = 15.0
"""Between two lines on a step that moves."""
REMINDER_SECONDS = 30.0
"""After so long without a line, the present activity is written again, with the time that it has taken."""
LASTING_SECONDS = 5.0
"""From then on, an activity is shown with its time."""
OLD_SECONDS = 15.0
"""The same where steps are counted: one of them may take long, and operators write them now and then."""
LABELS = {
    Stage.PREFLIGHT: "preflight",
    Stage.PREPARE: "pairs",
    Stage.DISTILL: "distill",
    Stage.EVALUATE: "evaluate",
}
LOSS_NAMES = {"distribution_matching": "dm", "regression": "reg", "fake_score": "fake"}


class Display(Protocol):
    """Shows the stages of a run."""

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        """A stage begins, or began so many seconds ago."""

    def show(self, progress: Progress) -> None:
        """A stage's present progress."""

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        """A stage is done (or was already); it took as many seconds, or the time since it was started here."""

    def fail(self, stage: Stage, note: str) -> None:
        """A stage ended without success."""

    def say(self, text: str | Text) -> None:
        """A line that stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(console: Console, *, estimate: bool = True) -> Display:
    """Bars on a terminal, lines elsewhere, nothing with --quiet.

    Args:
        console: where to.
        estimate: where a stage says no ETA, bars take one from the time that it has had; wrong for one that pauses.
    """
    console = console.aside()
    return BarDisplay(console, estimate=estimate) if console.is_interactive else LineDisplay(console)


def describe(progress: Progress) -> str:
    """A stage's progress in words: activity and for how long, whether it goes wrong, losses, speed, FID."""
    parts = [progress.activity + _lasting(progress), "collapsing" if progress.warnings else ""]
    parts += [f"{LOSS_NAMES.get(name, name)} {value:.3g}" for name, value in progress.losses.items()]
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.0f} img/s")
    if progress.fid is not None:
        parts.append(f"FID {progress.fid:.3g}")
    return " · ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _lasting(progress: Progress) -> str:
    """For how long step and activity have been the same, in words; nothing while that is usual."""
    seconds = progress.unchanged_seconds
    if not progress.activity or seconds is None or seconds < (OLD_SECONDS if progress.step else LASTING_SECONDS):
        return ""
    return f" (unchanged for {duration(seconds)})" if progress.step else f" ({duration(seconds)})"


class _Latest:
    """The latest progress of a stage, which ages until there is another one."""

    def __init__(self, progress: Progress, clock: Callable[[], float], before: "_Latest | None" = None) -> None:
        self._progress, self._clock = progress, clock
        if progress.unchanged_seconds is not None:
            self._since = clock() - progress.unchanged_seconds
        else:
            self._since = clock() if before is None or self.differs(before) else before._since

    def differs(self, other: "_Latest") -> bool:
        """Returns whether step or activity are others."""
        one, two = self._progress, other._progress
        return (one.stage, one.step, one.activity) != (two.stage, two.step, two.activity)

    def aged(self) -> Progress:
        """The progress, with the time for which it has been the same by now."""
        return self._progress.model_copy(update={"unchanged_seconds": max(0.0, self._clock() - self._since)})


class _Messages:
    """Remembers which of a stage's messages were shown."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def news(self, messages: list[str]) -> list[str]:
        new = [message for message in messages if message not in self._seen]
        self._seen += new
        return new


class _Note(ProgressColumn):
    """The last column: what a stage is doing, or how it ended."""

    def render(self, task: Task) -> Text:
        note: Text | _Latest = task.fields["note"]
        return _dim(describe(note.aged())) if isinstance(note, _Latest) else note


class BarDisplay:
    """One bar a stage.

    Args:
        console: where to.
        estimate: as for `make_display`.
        clock: the seconds that pass.
    """

    def __init__(self, console: Console, *, estimate: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._estimate, self._clock = console, estimate, clock
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time]:>7}"),
            _Note(),
            console=console,
            transient=False,
            redirect_stderr=sys.stderr.isatty(),  # logs that go to a file stay there
        )
        self._task: TaskID | None = None
        self._latest: _Latest | None = None
        self._started = 0.0
        self._first: tuple[float, int] | None = None
        """When a step was first told, and which."""
        self._messages = _Messages()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        self._latest = _Latest(Progress(stage=stage, activity="" if ago else "starting"), self._clock)
        if self._task is None:
            self._task = self._bars.add_task(LABELS[stage], total=None, note=self._latest, time="")
        else:  # it was shown before it began
            self._bars.update(self._task, note=self._latest)
        self._started = self._clock() - ago
        self._first = None

    def show(self, progress: Progress) -> None:
        if self._task is None:
            self.start(progress.stage)
        assert self._task is not None
        self._latest = _Latest(progress, self._clock, self._latest)
        for message in self._messages.news(progress.messages):
            self.say(warning(message))
        eta = progress.eta_seconds
        if eta is None and self._estimate and progress.step is not None and progress.total:
            eta = self._estimated(progress.step, progress.total)
        self._bars.update(
            self._task,
            total=progress.total or None,
            completed=progress.step,
            note=self._latest,
            time=f"{duration(eta)} left" if eta is not None else "",
        )

    def _estimated(self, step: int, total: int) -> float | None:
        """Seconds that are left at the speed since a step was first told: what came before was no work of this run."""
        now = self._clock()
        if self._first is None or step < self._first[1]:
            self._first = now, step
        began, first = self._first
        return (now - began) * (total - step) / (step - first) if step > first else None

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        if self._task is None:
            self.start(stage)
        assert self._task is not None
        elapsed = self._clock() - self._started if took is None else took
        task = next(task for task in self._bars.tasks if task.id == self._task)
        total = task.total or 1
        self._bars.update(
            self._task, total=total, completed=total, note=_dim(note), time=duration(elapsed) if elapsed > 1 else ""
        )
        self._task = None

    def fail(self, stage: Stage, note: str) -> None:
        assert self._task is not None
        self._bars.update(self._task, note=one_line(note, style="dim red"), time="")
        self._bars.stop_task(self._task)
        self._task = None

    def say(self, text: str | Text) -> None:
        self._console.print(one_line(text) if isinstance(text, str) else text)


class LineDisplay:
    """A line now and then, for logs; as a context manager also where nothing changes for long.

    Args:
        console: where to.
        clock: the seconds that pass.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._latest: _Latest | None = None
        self._shown: str | None = None  # the activity of the last line that had one
        self._due = 0.0  # when the next line on a step that moves may come
        self._written = 0.0
        self._started: float | None = None
        self._messages = _Messages()
        self._lock = threading.RLock()
        self._left = threading.Event()
        self._reminders = threading.Thread(target=self._remind_until_left, name="reminders", daemon=True)

    def __enter__(self) -> Self:
        self._reminders.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._reminders.join()

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        with self._lock:
            self._started, self._due, self._shown = self._clock() - ago, 0.0, None
            self._latest = _Latest(Progress(stage=stage, activity="starting"), self._clock)
            self._print(f"{LABELS[stage]}: {'under way' if ago else 'starting'}")

    def show(self, progress: Progress) -> None:
        with self._lock:
            for message in self._messages.news(progress.messages):
                self._print(f"{LABELS[progress.stage]}: {message}")
            before, self._latest = self._latest, _Latest(progress, self._clock, self._latest)
            moved = before is None or self._latest.differs(before)
            if progress.activity != self._shown or (moved and self._clock() >= self._due):
                self._print_latest()

    def remind(self) -> None:
        """Writes the present activity again, if there was no line for long."""
        with self._lock:
            if self._latest is not None and self._clock() >= self._written + REMINDER_SECONDS:
                self._print_latest()

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        with self._lock:
            since = self._clock() if self._started is None else self._started
            elapsed = self._clock() - since if took is None else took
            self._print(f"{LABELS[stage]}: {note}" + (f" ({duration(elapsed)})" if elapsed > 1 else ""))
            self._started = self._latest = None

    def fail(self, stage: Stage, note: str) -> None:
        with self._lock:
            self._print(f"{LABELS[stage]}: {note}")
            self._latest = None

    def say(self, text: str | Text) -> None:
        with self._lock:
            self._print(text)

    def _remind_until_left(self) -> None:
        while not self._left.wait(1.0):
            self.remind()

    def _print_latest(self) -> None:
        assert self._latest is not None
        progress = self._latest.aged()
        self._shown, self._due = progress.activity, self._clock() + LINE_SECONDS
        counted = f"{progress.step}/{progress.total} {progress.unit} · " if progress.total else ""
        left = f" · {duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
        self._print(f"{LABELS[progress.stage]}: {counted}{describe(progress)}{left}")

    def _print(self, text: str | Text) -> None:
        self._console.print(one_line(text) if isinstance(text, str) else text, soft_wrap=True)
        self._written = self._clock()


def _dim(text: str) -> Text:
    return one_line(text, style="dim")
