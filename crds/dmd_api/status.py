"""The status of a `DMDDistillation`: what the operator observed, and all that it remembers."""

import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

from dmd_api.stages import Stage

PHASES = {
    Stage.PREFLIGHT: "Preflight",
    Stage.PREPARE: "Preparing",
    Stage.DISTILL: "Distilling",
    Stage.EVALUATE: "Evaluating",
}
"""The phase of a run that is in a stage."""
STAGE_DONE = {
    Stage.PREFLIGHT: "PreflightPassed",
    Stage.PREPARE: "Prepared",
    Stage.DISTILL: "Distilled",
    Stage.EVALUATE: "Evaluated",
}
"""The condition that latches each stage."""
CONDITIONS = (
    "Healthy",
    "Suspended",
    "Stalled",
    "Failed",
    "Complete",
    *STAGE_DONE.values(),
    "GatesPassed",
    "Registered",
)
"""The types of all conditions that the operator sets, in the order that `kubectl describe` shows them in.

How the run is, why, and whether it is over come before what was done on the way.
"""
MOST_CONDITIONS = 32
"""As many as the API server takes, others' among them."""


ConditionStatus = Literal["True", "False", "Unknown"]
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; null in the resource, whose JSON knows neither NaN nor infinity, is one that is not finite."""


def _plausible(time: AwareDatetime) -> AwareDatetime:
    if not 2000 <= time.year < 2200:
        raise ValueError("is no time that a run can have; times are of the years 2000 to 2199")
    return time


def _as_kubernetes_writes(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Whoever may write a status may write anything into it. These are the bounds within which times and counts can be
# added to, and within which the API server's schema (`crd.py`) takes them.
Time = Annotated[
    AwareDatetime, AfterValidator(_plausible), PlainSerializer(_as_kubernetes_writes, return_type=str, when_used="json")
]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Step = Annotated[int, Field(ge=0, le=2**63 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class StatusModel(BaseModel):
    """The base of the status: camelCase in the resource; fields of later versions are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Condition(StatusModel):
    """A condition as in the Kubernetes API conventions."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""
    observed_generation: Step = 0
    last_transition_time: Time


class RunStatus(StatusModel):
    """All that is known of a run between two looks at it."""

    observed_generation: Step = 0
    phase: str = "Pending"
    stage: Stage = Stage.PREFLIGHT
    """The first stage that is not done, which latches those before it: they never run again."""
    attempt: Count = 0
    """The number of the newest attempt at `stage` that was created; 0: none."""
    ended_attempt: Count = 0
    """The newest attempt at `stage` whose end was handled."""
    next_attempt_time: Time | None = None
    """The earliest time of the next attempt."""
    retries: Count = 0
    """Failed attempts at `stage` in a row without progress between them; the back-off grows with them."""
    disruptions: Count = 0
    """Disruptions at `stage` in a row without progress between them."""
    failures: Count = 0
    """Failed attempts that count against `maxRestarts`, over all stages."""
    activity: str | None = None
    step: Step | None = None
    total: Step | None = None
    unit: str | None = None
    """The unit of `step` and `total` at `stage`."""
    checkpoint_step: Step | None = None
    """The generator update that the next attempt at distilling resumes from."""
    progress: str | None = None
    eta: str | None = None
    losses: dict[str, Measured] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """The warnings of rank 0 of the present attempt when it last answered."""
    images_per_second: Number | None = None
    fid: Number | None = None
    best_fid: Number | None = None
    best_step: Step | None = None
    last_progress_time: Time | None = None
    """The time when the step last moved, or the attempt's pods all ran for the first time."""
    start_time: Time | None = None
    active_since: Time | None = None
    """The time since which the run is not suspended; None while it is."""
    active_seconds: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)] = 0
    """Seconds that it was active before `active_since`."""
    completion_time: Time | None = None
    mlflow_run: str | None = None
    mlflow_run_url: str | None = None
    model_version: str | None = None
    model_uri: str | None = None
    """`models:/NAME/VERSION`."""
    published: str | None = None
    """`hf://OWNER/NAME@COMMIT`."""
    resolved: dict[str, Any] | None = None
    """The operator's defaults as they were when the run started."""
    operator: str | None = None
    """The installation that looks after the run: the namespace and name of its Lease."""
    conditions: tuple[Condition, ...] = ()

    def to_resource(self) -> dict[str, Any]:
        """The status as the resource has it."""
        written: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True, exclude_none=True))
        return written

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type, where there is one."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """Returns whether the condition of this type is there and True."""
        condition = self.condition(kind)
        return condition is not None and condition.status == "True"
