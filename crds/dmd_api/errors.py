"""Errors with a text for the user: what was wrong, where, what to do."""

from dmd_api.exit_codes import ExitCode
from dmd_api.text import neutral


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
