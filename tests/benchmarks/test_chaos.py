"""What chaos plans, and how its report is gone on with."""

from pathlib import Path

from benchmarks.chaos import report
from benchmarks.chaos.plan import plan

from dmd_api.status import PHASES
from tests.e2e.disturbances import ALL


def test_a_hundred_runs_have_every_disturbance_in_every_stage() -> None:
    planned = [(p.what, p.phase) for number in range(100) for p in plan(number)]
    assert {what for what, _ in planned} == ALL.keys()
    assert {phase for _, phase in planned} == set(PHASES.values())
    assert plan(7) == plan(7) != plan(8)


def test_a_report_names_the_runs_that_are_missing_and_those_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for number, wrong in ((0, []), (3, ["registered 2 times"])):
        done = [{"what": "delete_a_pod", "phase": "Distilling", "at": 1.0, "told": ""}]
        report.write({"number": number, "outcome": "Complete", "disturbances": done, "wrong": wrong}, path)
    made = report.read(path)
    assert report.missing(made, 5) == [1, 2, 4]
    found = report.summary(made, 5)
    assert found["missing"] == [1, 2, 4]
    assert found["wrong"] == {"runs": [3], "limit": 0}
    assert found["disturbances"] == {"delete_a_pod": 2}
