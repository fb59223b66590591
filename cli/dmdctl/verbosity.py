"""How much a command says: its result alone, its own words, or what the trainer and the libraries log as well"""

import importlib.util
import logging
import os
import sys
import warnings
from enum import IntEnum
from typing import TextIO

from dmd_api.errors import BadInputError
from dmd_api.text import LogFormatter, neutral

OURS = ("dmd_api", "dmd_trainer", "dmdctl")
LIBRARIES = ("diffusers", "lpips", "peft", "torch", "torchvision", "transformers")


class Verbosity(IntEnum):
    """How much this process says; each level says all that those before it say."""

    QUIET = -1
    """The result and errors."""
    NORMAL = 0
    """What is being done, and hints."""
    VERBOSE = 1
    """INFO of our own loggers, and warnings of libraries."""
    DEBUG = 2
    """DEBUG of our own loggers, and INFO of libraries: at DEBUG, those of HTTP log tokens."""


_chosen = Verbosity.NORMAL


def choose(*, quiet: bool, verbose: int) -> None:
    """Sets how much this process says from now on; logs go to standard error.

    Args:
        quiet: whether --quiet is given.
        verbose: how often --verbose is.

    Raises:
        BadInputError: both are.
    """
    global _chosen
    if quiet and verbose:
        raise BadInputError("--quiet, --verbose: contradict each other; leave one of them out")
    _chosen = Verbosity.QUIET if quiet else Verbosity(min(verbose, Verbosity.DEBUG))
    if is_verbose():
        handler = _StderrHandler()
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler])
        logging.getLogger().setLevel(logging.INFO if is_debugging() else logging.WARNING)
        for name in OURS:
            logging.getLogger(name).setLevel(logging.DEBUG if is_debugging() else logging.INFO)


def is_quiet() -> bool:
    """Returns whether the result and errors are all that is to be said."""
    return _chosen == Verbosity.QUIET


def is_verbose() -> bool:
    """Returns whether logs are to be shown."""
    return _chosen >= Verbosity.VERBOSE


def is_debugging() -> bool:
    """Returns whether everything in logs is to be shown."""
    return _chosen >= Verbosity.DEBUG


def show_log_line(line: str) -> None:
    """Writes a line that another process has logged."""
    print(neutral(line), file=sys.stderr)


def quiet_warnings() -> None:
    """Turns off the warnings of the trainer's libraries, without importing any; with --verbose they stay."""
    if is_verbose():
        return
    warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ[f"{library}_VERBOSITY"] = "error"


def quiet_libraries() -> None:
    """Turns off the warnings, bars and hints of the trainer's libraries in this process, where they are installed.

    With --verbose they stay.
    """
    quiet_warnings()
    if is_verbose() or importlib.util.find_spec("diffusers") is None:
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error by then: while bars are drawn, rich puts it above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
