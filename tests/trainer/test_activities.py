"""What a person is shown while a run's stages work."""

from pathlib import Path
from typing import Any

import pytest

from dmd_api.stages import Stage
from dmd_trainer.runtime.progress import ProgressBoard
from tests.stages import run_stage_here

LAST = "sending the last records to MLflow"


def test_each_stage_names_what_takes_long(
    manifest_dict: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = manifest_dict["spec"]
    spec["training"] |= {"generatorUpdates": 2, "checkpointEvery": 1, "sampleEvery": 2}
    spec["evaluation"] |= {"every": 2, "samples": 16}
    spec["method"]["regression"]["pairs"] = 16
    activities: list[str] = []
    update = ProgressBoard.update

    def note(board: ProgressBoard, **fields: Any) -> None:
        update(board, **fields)
        if board.current.activity not in activities[-1:]:
            activities.append(board.current.activity)

    monkeypatch.setattr(ProgressBoard, "update", note)
    assert run_stage_here(Stage.PREPARE, manifest_dict, tmp_path).error is None
    assert activities == [
        "importing libraries",
        "loading the teacher",
        "fetching the teacher",
        "loading the teacher",
        "trying the teacher",
        "solving the teacher's ODE",
    ]
    activities.clear()
    assert run_stage_here(Stage.DISTILL, manifest_dict, tmp_path).error is None
    assert activities[-1] == LAST
    assert {
        "fetching the teacher",
        "reading the pairs",
        "loading the networks of the regression's loss",
        "setting up the networks",
        "loading the networks of the evaluation",
        "measuring the real images",
        "drawing the teacher's images",
        "looking for a checkpoint",
        "training",
        "evaluating step 0",
    } <= set(activities)
    activities.clear()
    assert run_stage_here(Stage.EVALUATE, manifest_dict, tmp_path).error is None
    assert activities[-5:] == [
        "drawing pictures",
        "exporting the generator",
        "registering the model",
        "sending the report to MLflow",
        LAST,
    ]
