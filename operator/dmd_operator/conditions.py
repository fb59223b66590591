"""Conditions as in the Kubernetes API conventions: their times move only with their status."""

from datetime import datetime

from dmd_api.status import Condition, ConditionStatus, RunStatus

LONGEST_MESSAGE = 32768
"""Characters of a condition's message that the API server takes."""


def shown(text: str) -> str:
    """Text of pods and nodes as it may be shown in a terminal: only line breaks are left of control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:LONGEST_MESSAGE])


def mark(
    status: RunStatus,
    kind: str,
    value: ConditionStatus,
    reason: str,
    message: str = "",
    *,
    now: datetime,
    generation: int,
) -> RunStatus:
    """`status` with this condition set, the others where they were."""
    before = status.condition(kind)
    condition = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=shown(message),
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and before.status == value else now,
    )
    if before is None:
        return status.model_copy(update={"conditions": (*status.conditions, condition)})
    conditions = tuple(condition if old.type == kind else old for old in status.conditions)
    return status.model_copy(update={"conditions": conditions})
