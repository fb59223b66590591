"""Text of others as it is shown: nothing in it steers a terminal, a status or a Markdown page"""

import logging
import re
import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control, format (direction, invisible) and surrogate characters, and line separators."""
_KEPT = "\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Persian and Indic words and emoji are written with joiners."""
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~&!$@])")


def neutral(text: str, line_break: str = " ") -> str:
    r"""Text for a terminal, a log or a status: characters that steer are replaced, each by one that is seen.

    Args:
        text: from a name, a file, a pod or a server.
        line_break: what becomes of its line breaks. By default it stays on one line, so that it cannot pose as others;
            with "\n" it keeps its lines.
    """
    if text.isprintable():
        return text
    return "".join(
        line_break if c == "\n" else REPLACEMENT if unicodedata.category(c) in _STEERING and c not in _KEPT else c
        for c in text
    )


def markdown(text: str) -> str:
    """Text within a line of Markdown, where it means itself: no emphasis, link, picture, HTML, table or code."""
    return _MARKUP.sub(r"\\\1", neutral(text))


class LogFormatter(logging.Formatter):
    """Logs end in terminals, and quote what libraries say of others' files."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, on as many lines as it has, and neutral."""
        return neutral(super().format(record), "\n")
