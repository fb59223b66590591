"""Shows what a command is doing before it has a run to show."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dmdctl.console import Console
from dmdctl.display import LASTING_SECONDS, REMINDER_SECONDS, duration


@contextmanager
def waiting(console: Console, activity: str) -> Iterator[None]:
    """Shows an activity while the block lasts: with a clock on a terminal, elsewhere in a line now and then.

    With --quiet nothing is shown.

    Args:
        console: where to.
        activity: what the block does, in a few words of ours.
    """
    console = console.aside()
    if console.is_interactive:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, redirect_stderr=sys.stderr.isatty()) as bars:
            bars.add_task(activity, total=None)
            yield
        return
    over = threading.Event()
    lines = threading.Thread(target=_write_lines, args=(console, activity, over), name="waiting", daemon=True)
    lines.start()
    try:
        yield
    finally:
        over.set()
        lines.join()


def _write_lines(console: Console, activity: str, over: threading.Event) -> None:
    started, pause = time.monotonic(), LASTING_SECONDS
    while not over.wait(pause):
        console.print_line(f"{activity} ({duration(time.monotonic() - started)})")
        pause = REMINDER_SECONDS
