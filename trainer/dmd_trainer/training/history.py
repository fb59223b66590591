"""The measurements of a training, which its plots are drawn from."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dmd_api.errors import BadInputError
from dmd_trainer.runtime.storage import Storage

HISTORY = "history.json"


@dataclass
class History:
    """Measurements by step; they travel in the checkpoints.

    Attributes:
        losses: {"step": ..., loss: ...}, whenever the curves get a point.
        evaluations: {"step": ..., metric: ...}, whenever a generator is evaluated.
        health: {"step": ..., measure: ...}, which the run's health follows from, with the losses.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)

    def evaluated(self, step: int) -> bool:
        """Returns whether the evaluation of `step` is in it already."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == step

    def values(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return asdict(self)

    def write(self, storage: Storage) -> None:
        """Leaves it in the run's storage, at the end of the training."""
        storage.write(HISTORY, json.dumps(self.values()).encode())


def read_history(storage: Storage) -> History:
    """The history of a training that has ended.

    Raises:
        BadInputError: there is none, or it is something else.
    """
    try:
        return History(**storage.read_json(HISTORY))
    except TypeError as error:
        raise BadInputError(f"{storage.uri_of(HISTORY)}: is no history ({error}); distil again") from error
