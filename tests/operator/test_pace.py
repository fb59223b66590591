"""How often many runs are looked at and written, and which changes of a status may wait."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.conditions import mark
from dmd_operator.pace import only_moved, paced
from dmd_operator.run import Settings
from dmd_operator.seen import Unwritten
from tests.operator.test_decide import NOW, job, look, running

TRAINING = RunStatus(
    stage=Stage.DISTILL,
    attempt=2,
    step=100,
    total=600,
    progress="16%",
    eta="5m",
    losses={"regression": 0.5},
    activity="training",
    images_per_second=12.0,
    last_progress_time=NOW,
)


def test_one_run_is_followed_closely_and_a_thousand_share_what_there_is() -> None:
    settings = Settings()
    assert paced(settings, 1) == settings
    many = paced(settings, 1000)
    requests = timedelta(minutes=1) / many.write_every
    assert requests < 1, "a run's figures are written less often than once a minute"
    assert many.progress_every == timedelta(seconds=40)


@pytest.mark.parametrize("runs", [1, 100, 100_000])
@pytest.mark.parametrize("minutes", [1, 30])
def test_a_moved_step_is_noticed_within_a_tenth_of_the_stall_limit(runs: int, minutes: int) -> None:
    found = paced(Settings(stall_timeout=timedelta(minutes=minutes)), runs)
    assert found.progress_every <= timedelta(minutes=minutes) / 10
    assert found.write_every <= timedelta(minutes=minutes) / 10


def test_a_step_that_moves_is_not_worth_a_write() -> None:
    later = TRAINING.model_copy(
        update={"step": 140, "progress": "23%", "losses": {"regression": 0.4}, "last_progress_time": NOW + timedelta(5)}
    )
    assert only_moved(TRAINING, later)


@pytest.mark.parametrize(
    "changed",
    [
        {"step": None},  # it appears, or goes away
        {"checkpoint_step": 100},
        {"fid": 3.0},
        {"phase": "Distilling"},
        {"warnings": ("the fake score's loss grows",)},
        {"attempt": 3},
    ],
)
def test_transitions_are_written_at_once(changed: dict[str, object]) -> None:
    assert not only_moved(TRAINING, TRAINING.model_copy(update=changed))


def test_a_condition_is_written_at_once() -> None:
    assert not only_moved(TRAINING, mark(TRAINING, "Healthy", "True", "Running", "", now=NOW, generation=1))


def test_what_is_not_written_is_still_decided_by() -> None:
    kept = Unwritten.of(TRAINING)
    stored = TRAINING.model_copy(update={"step": 40, "last_progress_time": NOW - timedelta(minutes=2)})
    assert kept.on(stored) == TRAINING
    other = stored.model_copy(update={"attempt": 3})
    assert kept.on(other) == other, "another attempt's figures are its own"
    started = stored.model_copy(update={"last_progress_time": None})
    assert kept.on(started) == started, "its pods do not run any more"


def test_a_finished_stage_leaves_no_service() -> None:
    prepared = job(Stage.PREPARE, 1, complete=True, has_service=True)
    decision = look(prepared, job(Stage.DISTILL, 1, running(), has_service=True))
    assert decision.delete_services == (prepared.name,)
    assert decision.acts
    unseen = replace(prepared, has_service=None)
    assert look(unseen, job(Stage.DISTILL, 1, running())).delete_services == (), "nobody has looked"
