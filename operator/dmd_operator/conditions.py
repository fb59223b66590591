"""Conditions as in the Kubernetes API conventions: their times move only with their status."""

from datetime import datetime

from dmd_api.status import Condition, ConditionStatus, RunStatus
from dmd_api.text import neutral

LONGEST_MESSAGE = 32768
"""Characters of a condition's message that the API server takes."""


def shown(text: str) -> str:
    """A message, of pods and nodes too, as conditions and events hold it."""
    return neutral(text[:LONGEST_MESSAGE], "\n")


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
        reason=neutral(reason),  # of pods and nodes, as much of the message is
        message=shown(message),
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and before.status == value else now,
    )
    if before is None:
        return status.model_copy(update={"conditions": (*status.conditions, condition)})
    conditions = tuple(condition if old.type == kind else old for old in status.conditions)
    return status.model_copy(update={"conditions": conditions})
