"""Exit codes: the meaning that the trainer, the operator and `dmdctl` share.

A stage's pod or process ends with one of these codes, and whoever started it decides by the code alone whether to
continue, to try again or to give up.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the trainer's stages and of `dmdctl`."""

    DONE = 0
    UNEXPECTED = 1
    """An error nobody foresaw (a bug, or the kernel's out-of-memory killer): tried again, counted as a failure."""
    BAD_INPUT = 2
    """Something a user wrote is wrong: trying again without a change is useless."""
    GATES_FAILED = 3
    """All is done and registered, but a quality gate failed: the model version has no alias."""
    DIVERGED = 4
    """Training diverged (a loss or gradient is NaN or exploded) or collapsed: the same seed would do so again."""
    INFRASTRUCTURE = 6
    """Storage, network or a peer failed for longer than the retries last: tried again, counted as a failure."""
    INTERRUPTED = 130
    """Ended by SIGTERM or SIGINT after a checkpoint: the next attempt resumes from it, and nothing is counted."""


RETRYABLE = frozenset({ExitCode.UNEXPECTED, ExitCode.INFRASTRUCTURE})
"""Failures that may pass: the stage is tried again, up to `maxRestarts` times."""
