"""A stage's result in storage: what is done is not done again, whoever was there to see its end."""

from pathlib import Path
from typing import Any

import pytest

from dmd_api.loading import parse_manifest
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_trainer.runtime.finished import read_result, write_result
from dmd_trainer.runtime.storage import open_storage
from tests.stages import RUN_KEY, run_stage_here

GATE = {"metric": "FID", "max": 5.0}


def test_a_stage_that_is_done_ends_at_once_with_its_result(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["teacher"]["uri"] = (tmp_path / "nothing").as_uri()
    storage = open_storage((tmp_path / "storage").as_uri()).sub(RUN_KEY)
    assert run_stage_here(Stage.DISTILL, manifest_dict, tmp_path).error is not None
    assert read_result(storage, Stage.DISTILL, parse_manifest(manifest_dict)) is None, "an error is no end"
    done = StageResult(stage=Stage.DISTILL, result={"fid": 0.5, "bestStep": 40})
    write_result(storage, done)
    assert run_stage_here(Stage.DISTILL, manifest_dict, tmp_path) == done


@pytest.mark.parametrize(
    ("asked", "report", "found"),
    [
        ([], '{"gates": []}', True),
        ([GATE], '{"gates": [{"metric": "FID", "max": 5.0, "min": null, "value": 0.5, "passed": true}]}', True),
        ([GATE], '{"gates": []}', False),
        ([], None, False),
    ],
    ids=["no gates", "the same gates", "new gates", "no report"],
)
def test_an_evaluation_is_done_for_the_gates_that_it_asked(
    manifest_dict: dict[str, Any], tmp_path: Path, asked: list[dict[str, Any]], report: str | None, found: bool
) -> None:
    manifest_dict["spec"]["gates"] = asked
    storage = open_storage(tmp_path.as_uri())
    write_result(storage, StageResult(stage=Stage.EVALUATE, result={"modelVersion": "7"}))
    if report is not None:
        storage.write("report.json", report.encode())
    result = read_result(storage, Stage.EVALUATE, parse_manifest(manifest_dict))
    assert (result is not None) == found
