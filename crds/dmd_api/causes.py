"""Tells the cause of an attempt's end from its consequences, among the ends of several workers.

One worker's failure ends its peers: their collectives break, or they are interrupted. Neither is ever a cause. Where
no worker names one, something outside ended the attempt.
"""

from collections.abc import Iterable
from enum import IntEnum

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import PEER_LOST, StageError, StageResult


class Weight(IntEnum):
    """How much a worker's end explains of its attempt's, the most first."""

    BAD_INPUT = 0
    DIVERGED = 1
    FAILED = 2
    """By itself, in a way nobody foresaw: a bug, or killed for want of memory."""
    INFRASTRUCTURE = 3
    """By itself, since something that it needs was away."""
    PEER_LOST = 4
    INTERRUPTED = 5
    """After the loss of a peer, since whoever started the workers interrupts those that are left of a failure."""

    @property
    def decisive(self) -> bool:
        """The next attempt would end the same way, whatever happened to the other workers."""
        return self in {Weight.BAD_INPUT, Weight.DIVERGED}

    @property
    def is_cause(self) -> bool:
        """The worker ended by itself."""
        return self not in {Weight.PEER_LOST, Weight.INTERRUPTED}


_WEIGHTS: dict[int, Weight] = {
    ExitCode.BAD_INPUT: Weight.BAD_INPUT,
    ExitCode.DIVERGED: Weight.DIVERGED,
    ExitCode.INFRASTRUCTURE: Weight.INFRASTRUCTURE,
    ExitCode.INTERRUPTED: Weight.INTERRUPTED,
}


def weigh(exit_code: int | None, error: StageError | None) -> Weight | None:
    """The weight of a worker's end; None where it has not ended, or ended well.

    Args:
        exit_code: its exit code, once it has ended.
        error: what it said, if anything.
    """
    if exit_code is None or exit_code in {ExitCode.DONE, ExitCode.GATES_FAILED}:
        return None
    if error is not None and error.reason == PEER_LOST:
        return Weight.PEER_LOST
    return _WEIGHTS.get(exit_code, Weight.FAILED)


def root_cause(results: Iterable[StageResult]) -> StageResult | None:
    """Of several workers' results the error that the others follow from, the first of equals; None without errors."""

    def order(result: StageResult) -> Weight:
        assert result.error is not None
        weight = weigh(result.error.exit_code, result.error)
        assert weight is not None, "an error has an exit code of its own"
        return weight

    return min((result for result in results if result.error is not None), key=order, default=None)
