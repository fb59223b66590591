"""Errors with a text for the user: what was wrong, where, what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from dmd_api.exit_codes import ExitCode
from dmd_api.text import neutral

PASSING = {
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
}  # fmt: skip
"""What the operating system says of a disk or a network that is full or ill, whoever wrote the file."""


class DMDError(Exception):
    """An error that ends a stage or a command with a message instead of a traceback.

    Args:
        message: what was wrong, where, and what to do about it, in one line.
    """

    reason = "Unexpected"
    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str) -> None:
        # Errors quote what others wrote, and end in terminals, logs and conditions.
        self.message = neutral(message, "\n")
        super().__init__(self.message)


class BadInputError(DMDError):
    """Something the user wrote, or a file they named, cannot work as it is."""

    reason = "BadInput"
    exit_code = ExitCode.BAD_INPUT


class TrainingDivergedError(DMDError):
    """A loss or a gradient is not finite, or exploded."""

    reason = "TrainingDiverged"
    exit_code = ExitCode.DIVERGED


class TrainingCollapsedError(TrainingDivergedError):
    """The generator's images are collapsing, and `training.stopOnCollapse` ends a run that does."""

    reason = "TrainingCollapsed"


class InfrastructureError(DMDError):
    """Storage, the network or a peer failed for longer than the retries last."""

    reason = "InfrastructureUnavailable"
    exit_code = ExitCode.INFRASTRUCTURE


class InterruptedRunError(DMDError):
    """The run was interrupted (SIGTERM, SIGINT) and saved a checkpoint first."""

    reason = "Interrupted"
    exit_code = ExitCode.INTERRUPTED


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever a library raises while it reads what a user gave into a `BadInputError`.

    Of damaged files libraries raise everything, KeyError and TypeError too, and the same input fails the same way next
    time. Errors that have a text for the user already pass.

    Args:
        what: the field, the file, and what was not possible: `spec.teacher.uri: /t/vae cannot be loaded`.
        remedy: what to do.

    Raises:
        BadInputError: the library raised.
        InfrastructureError: the disk or the network did: another try may succeed.
    """
    try:
        yield
    except DMDError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise InfrastructureError(f"{what} ({first_line(error)}); is the disk or the network in order?") from error
        raise BadInputError(f"{what} ({first_line(error)}); {remedy}") from error


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Adds the manifest's field to errors about what a user gave that name none; also a decorator.

    Raises:
        BadInputError: as it was raised, its message beginning with the field.
    """
    try:
        yield
    except BadInputError as error:
        if error.message.startswith("spec."):
            raise
        raise type(error)(f"{field}: {error.message}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text; with its kind where that is no sentence, as a KeyError's or none at all."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    prose = isinstance(error, ValueError | OSError)
    return lines[0][:300] if prose else f"{type(error).__name__}: {lines[0][:300]}"
