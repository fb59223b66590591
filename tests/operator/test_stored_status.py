"""Statuses that no operator wrote: every run is looked at, and every wish is heard."""

from typing import Any

import pytest

from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.decide import decide
from dmd_operator.run import Run
from dmd_operator.stored_status import completed, read_status
from tests.operator.test_decide import NOW, job, manifest, reason, running

SOUND = {
    "stage": "distill",
    "attempt": 3,
    "endedAttempt": 2,
    "startTime": "2026-01-01T00:00:00Z",
    "activeSince": "2026-01-01T00:00:00Z",
    "step": 40,
}
PASSED = {"type": "PreflightPassed", "status": "True", "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}
FOREIGN = [{**PASSED, "type": f"Foreign{n}"} for n in range(32)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "training"},
        {"stage": ""},
        {"stage": None},
        {"attempt": 2**63 - 1},
        {"attempt": "three"},
        {"completionTime": "9999-12-31T23:59:59Z"},
        {"lastProgressTime": "9999-12-31T23:59:59Z"},
        {"lastProgressTime": "2026-01-01T00:00:00"},
        {"activeSeconds": 1e300},
        {"activeSeconds": -1},
        {"step": 10**30},
        {"losses": {"fake_score": "much"}},
        {"losses": 7},
        {"resolved": {"storage": {"uri": 7}}},
        {"conditions": [{"type": "Healthy"}]},
        {"conditions": "none"},
        {"startTime": [], "phase": {}, "retries": -1, "warnings": 3},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_reset_and_named(wrong: dict[str, Any]) -> None:
    status, unreadable = read_status({**SOUND, **wrong})
    assert set(unreadable) == set(wrong)
    jobs = (job(Stage.DISTILL, 3, running(0), running(1), completions=2),)
    status = completed(status, unreadable, manifest(), jobs)
    decision = decide(Run(manifest(), status, jobs, NOW))
    RunStatus.model_validate(decision.status.model_dump(by_alias=True))
    assert decide(Run(manifest(suspend=True), status, jobs, NOW)).delete == (jobs[0].name,)


def test_a_stage_that_is_no_stage_follows_from_the_conditions_and_the_jobs() -> None:
    status, unreadable = read_status({**SOUND, "stage": "training", "conditions": [PASSED]})
    status = completed(status, unreadable, manifest(), [job(Stage.PREPARE, 2), job(Stage.PREPARE, 1)])
    assert (status.stage, status.attempt, status.ended_attempt) == (Stage.PREPARE, 2, 1)


def test_others_conditions_leave_room_for_the_operators_own() -> None:
    status, unreadable = read_status({**SOUND, "conditions": FOREIGN})
    assert unreadable == ()
    decision = decide(Run(manifest(suspend=True), status, (), NOW))
    assert reason(decision, "Suspended") == "True Suspended"
    assert len(decision.status.conditions) < 32


@pytest.mark.parametrize("raw", [None, {}, {"fieldOfALaterVersion": 1}])
def test_an_empty_status_and_a_later_one_are_read(raw: Any) -> None:
    assert read_status(raw) == (RunStatus(), ())
