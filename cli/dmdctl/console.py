"""The terminal: what is printed means itself, whoever wrote it; styles are given beside it and never within"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console as RichConsole  # noqa: TID251 - its one user
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dmd_api.text import neutral
from dmdctl.verbosity import is_quiet

Part = str | tuple[str, str]
"""Text, or text and its style."""


class Console(RichConsole):
    """rich's console without markup in text, and with control characters replaced in whatever it prints."""

    def __init__(self, *, stderr: bool = False, silent: bool = False) -> None:
        # What is silent is no terminal either: bars on one take over standard output and error.
        super().__init__(
            markup=False,
            emoji=False,
            highlight=False,
            stderr=stderr,
            quiet=silent,
            force_terminal=False if silent else None,
            force_interactive=False if silent else None,
        )
        if "TTY_INTERACTIVE" not in os.environ:
            # FORCE_COLOR asks for colours in a log, and not for bars that are drawn again and again.
            self.is_interactive = self.is_interactive and self.file.isatty()

    def aside(self) -> "Console":
        """The console for what is neither result nor error: this one, or with --quiet one that writes nothing."""
        return Console(silent=True) if is_quiet() else self

    @contextmanager
    def spinner(self, activity: str) -> Iterator[None]:
        """Shows an activity while the block lasts, where something that moves can be shown."""
        console = self.aside()
        with console.status(activity) if console.is_interactive else nullcontext():
            yield

    def print_line(self, *parts: Part, style: str = "") -> None:
        """Prints one line, which is not wrapped: line breaks in it become spaces."""
        self.print(one_line(*parts, style=style), soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as rich does: everything that is printed comes through here, and its own cursor movements too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=neutral(segment.text, "\n"))


def one_line(*parts: Part, style: str = "") -> Text:
    """Styled text on one line."""
    text = Text(style=style)
    for part in parts:
        words, own = part if isinstance(part, tuple) else (part, None)
        text.append(neutral(words), own)
    return text


def warning(text: str) -> Text:
    """A line that warns."""
    return one_line("  ", ("!", "yellow"), " ", text)
