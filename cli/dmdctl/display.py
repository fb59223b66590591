"""Shows a run as it goes: a progress bar for each stage, or plain lines where there is no terminal."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmdctl.console import Console, one_line, warning

LINE_SECONDS = 15.0
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
    """Bars on a terminal, lines elsewhere.

    Args:
        console: where to.
        estimate: where a stage says no ETA, bars take one from the time that it has had; wrong for one that pauses.
    """
    return BarDisplay(console, estimate=estimate) if console.is_terminal else LineDisplay(console)


def describe(progress: Progress) -> str:
    """A stage's progress in words: activity, whether it goes wrong, losses, speed, FID."""
    parts = [progress.activity, "collapsing" if progress.warnings else ""]
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


class _Messages:
    """Remembers which of a stage's messages were shown."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    def news(self, messages: list[str]) -> list[str]:
        new = [message for message in messages if message not in self._seen]
        self._seen += new
        return new


class _Note(ProgressColumn):
    """The last column."""

    def render(self, task: Task) -> Text:
        note: Text = task.fields["note"]
        return note


class BarDisplay:
    """One bar a stage."""

    def __init__(self, console: Console, *, estimate: bool = True) -> None:
        self._console, self._estimate = console, estimate
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time]:>7}"),
            _Note(),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None
        self._started = 0.0
        self._messages = _Messages()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        self._task = self._bars.add_task(LABELS[stage], total=None, note=_dim("" if ago else "starting"), time="")
        self._started = time.monotonic() - ago

    def show(self, progress: Progress) -> None:
        assert self._task is not None
        for message in self._messages.news(progress.messages):
            self.say(warning(message))
        eta = progress.eta_seconds
        elapsed = time.monotonic() - self._started
        if eta is None and self._estimate and progress.step and progress.total:
            eta = elapsed * (progress.total - progress.step) / progress.step
        self._bars.update(
            self._task,
            total=progress.total or None,
            completed=progress.step,
            note=_dim(describe(progress)),
            time=f"{duration(eta)} left" if eta is not None else "",
        )

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        if self._task is None:
            self.start(stage)
        assert self._task is not None
        elapsed = time.monotonic() - self._started if took is None else took
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
    """A line now and then, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._activity = ""
        self._started = 0.0
        self._messages = _Messages()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        self._started, self._next, self._activity = time.monotonic() - ago, 0.0, ""
        self._print(f"{LABELS[stage]}: {'under way' if ago else 'starting'}")

    def show(self, progress: Progress) -> None:
        label = LABELS[progress.stage]
        for message in self._messages.news(progress.messages):
            self._print(f"{label}: {message}")
        now = time.monotonic()
        if now < self._next and progress.activity == self._activity:
            return
        self._next, self._activity = now + LINE_SECONDS, progress.activity
        counted = f"{progress.step}/{progress.total} {progress.unit} · " if progress.total else ""
        left = f" · {duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
        self._print(f"{label}: {counted}{describe(progress)}{left}")

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        elapsed = took if took is not None else time.monotonic() - self._started if self._started else 0.0
        self._print(f"{LABELS[stage]}: {note}" + (f" ({duration(elapsed)})" if elapsed > 1 else ""))
        self._started = 0.0

    def fail(self, stage: Stage, note: str) -> None:
        self._print(f"{LABELS[stage]}: {note}")

    def say(self, text: str | Text) -> None:
        self._print(text)

    def _print(self, text: str | Text) -> None:
        self._console.print(one_line(text) if isinstance(text, str) else text, soft_wrap=True)


def _dim(text: str) -> Text:
    return one_line(text, style="dim")
