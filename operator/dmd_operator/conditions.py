"""Conditions as in the Kubernetes API conventions: their times move only with their status."""

from datetime import datetime

from dmd_api.status import CONDITIONS, Condition, ConditionStatus, RunStatus
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
    """`status` with this condition set; the operator's own are in the order of `CONDITIONS`, others' follow."""
    before = status.condition(kind)
    condition = Condition(
        type=kind,
        status=value,
        reason=neutral(reason),  # of pods and nodes, as much of the message is
        message=shown(message),
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and before.status == value else now,
    )
    others = [old for old in status.conditions if old.type != kind]
    conditions = sorted((*others, condition), key=_place)
    return status.model_copy(update={"conditions": tuple(conditions)})


def _place(condition: Condition) -> int:
    return CONDITIONS.index(condition.type) if condition.type in CONDITIONS else len(CONDITIONS)
