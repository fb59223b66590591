"""Reads a run's status as it is stored: what cannot be read is left out, and its field named.

Not only operators write statuses: people edit them, backups restore them, other versions wrote them. None of that may
keep a run from being looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dmd_api.defaults import Defaults
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import stages
from dmd_api.status import CONDITIONS, MOST_CONDITIONS, STAGE_DONE, Condition, RunStatus
from dmd_operator.observed import ObservedJob


def read_status(raw: Any) -> tuple[RunStatus, tuple[str, ...]]:
    """The status, and the names of its fields that could not be read."""
    fields = dict(raw) if isinstance(raw, Mapping) else {}
    unreadable: list[str] = [] if isinstance(raw, Mapping | None) else ["status"]
    conditions = fields.get("conditions")
    if isinstance(conditions, list):
        fields["conditions"] = [entry for entry in conditions if _readable(Condition, entry)]
        if len(fields["conditions"]) < len(conditions):
            unreadable.append("conditions")
        fields["conditions"] = _with_room(fields["conditions"])
    if fields.get("resolved") is not None and not _readable(Defaults, fields["resolved"]):
        unreadable.append("resolved")
        del fields["resolved"]
    try:
        return RunStatus.model_validate(fields), tuple(unreadable)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors()}
    readable = {name: value for name, value in fields.items() if name not in wrong}
    return RunStatus.model_validate(readable), (*unreadable, *sorted(wrong))


def completed(
    status: RunStatus, unreadable: Sequence[str], manifest: DMDDistillation, jobs: Sequence[ObservedJob]
) -> RunStatus:
    """`status` with what it has lost taken from its conditions and from the run's Jobs."""
    order = stages(manifest)
    if "stage" in unreadable or status.stage not in order:
        stage = next((stage for stage in order if not status.is_true(STAGE_DONE[stage])), order[-1])
        status = status.model_copy(update={"stage": stage, "attempt": 0, "ended_attempt": 0})
        unreadable = (*unreadable, "attempt")
    if "attempt" in unreadable:
        numbers = [job.attempt for job in jobs if job.stage is status.stage]
        newest = max(numbers, default=0)
        status = status.model_copy(update={"attempt": newest, "ended_attempt": max(newest - 1, 0)})
    return status


def _readable(model: type[Condition] | type[Defaults], value: Any) -> bool:
    try:
        model.model_validate(value)
    except ValidationError:
        return False
    return True


def _with_room(conditions: list[Any]) -> list[Any]:
    """Drops others' conditions where they leave no room for the operator's own."""
    others = [entry for entry in conditions if entry["type"] not in CONDITIONS]
    kept = others[: MOST_CONDITIONS - len(CONDITIONS)]
    return [entry for entry in conditions if entry["type"] in CONDITIONS or entry in kept]
