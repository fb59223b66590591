"""Conditions as in the Kubernetes API conventions: a transition time moves only when the status does."""

from datetime import datetime
from typing import Literal

from dmd_api.runtime import Stage
from dmd_api.status import Condition, RunStatus

STAGE_DONE = {
    Stage.PREFLIGHT: "PreflightPassed",
    Stage.PREPARE: "Prepared",
    Stage.DISTILL: "Distilled",
    Stage.EVALUATE: "Evaluated",
}
"""The condition that latches each stage."""


def with_condition(
    status: RunStatus,
    kind: str,
    value: Literal["True", "False", "Unknown"],
    *,
    reason: str,
    message: str = "",
    now: datetime,
    generation: int = 0,
) -> RunStatus:
    """`status` with this condition set, the others where they were."""
    before = status.condition(kind)
    since = before.last_transition_time if before is not None and before.status == value else now
    condition = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=since,
    )
    if before is None:
        return status.model_copy(update={"conditions": (*status.conditions, condition)})
    conditions = tuple(condition if old.type == kind else old for old in status.conditions)
    return status.model_copy(update={"conditions": conditions})
