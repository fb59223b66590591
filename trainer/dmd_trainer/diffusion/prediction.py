"""The meaning of a network's output, as its scheduler's configuration says."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from dmd_api.errors import BadInputError


class Prediction(StrEnum):
    """What a network's output means; the values are diffusers' `prediction_type`, and the two it has no word for."""

    EPSILON = "epsilon"
    V = "v_prediction"
    SAMPLE = "sample"
    EDM = "edm"
    FLOW = "flow_prediction"


def prediction_of(scheduler: Mapping[str, Any]) -> Prediction:
    """Reads it from a teacher's `scheduler/scheduler_config.json`.

    Raises:
        BadInputError: there is no such prediction, or EDM's teachers make none such.
    """
    name = str(scheduler.get("_class_name"))
    if name.startswith("FlowMatch"):
        return Prediction.FLOW
    kind = str(scheduler.get("prediction_type", "epsilon"))
    if name.startswith(("EDM", "CMStochastic")):
        if kind != "epsilon":
            raise BadInputError(
                f"scheduler/scheduler_config.json: prediction_type {kind} of EDM's is not supported; epsilon is"
            )
        return Prediction.EDM
    if kind not in {"epsilon", "v_prediction", "sample"}:
        raise BadInputError(
            f"scheduler/scheduler_config.json: prediction_type {kind} of {name} is not supported; "
            "epsilon, v_prediction and sample are"
        )
    return Prediction(kind)
