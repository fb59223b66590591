"""The cause of an attempt's end, among its consequences in the ends of several workers.

One worker's failure ends its peers: their collectives break, or they are interrupted. Neither is ever a cause. Where
no worker names one, something outside ended the attempt.
"""

from collections.abc import Iterable
from enum import IntEnum

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import PEER_LOST, StageError, StageResult


class Weight(IntEnum):
    """The share of an attempt's end that a worker's end explains, the largest first."""

    BAD_INPUT = 0
    DIVERGED = 1
    FAILED = 2
    """The worker's own failure, which nobody foresaw: a bug, or it was killed for lack of memory."""
    INFRASTRUCTURE = 3
    """The worker's own failure, because something that it needs was away."""
    PEER_LOST = 4
    INTERRUPTED = 5
    """Explains less than the loss of a peer: a failure makes whoever started the workers interrupt the rest."""

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
    """The error that the others follow from, the first of equals; None where no result has one."""

    def order(result: StageResult) -> Weight:
        assert result.error is not None
        weight = weigh(result.error.exit_code, result.error)
        assert weight is not None, "an error has an exit code of its own"
        return weight

    return min((result for result in results if result.error is not None), key=order, default=None)
