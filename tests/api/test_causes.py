"""Of several workers' ends, the cause: what launchers, the operator and `dmdctl run` all go by."""

import itertools

import pytest

from dmd_api.causes import Weight, root_cause, weigh
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import PEER_LOST, StageError, StageResult
from dmd_api.stages import Stage


def ended(code: ExitCode, reason: str) -> StageResult:
    return StageResult(stage=Stage.DISTILL, error=StageError(reason=reason, message="", exit_code=code))


BAD = ended(ExitCode.BAD_INPUT, "BadInput")
NAN = ended(ExitCode.DIVERGED, "TrainingDiverged")
BUG = ended(ExitCode.UNEXPECTED, "Unexpected")
AWAY = ended(ExitCode.INFRASTRUCTURE, "InfrastructureUnavailable")
LEFT = ended(ExitCode.INFRASTRUCTURE, PEER_LOST)
INTERRUPTED = ended(ExitCode.INTERRUPTED, "Interrupted")
ORDER = (BAD, NAN, BUG, AWAY, LEFT, INTERRUPTED)


def test_the_cause_is_found_wherever_it_stands() -> None:
    for stronger, weaker in itertools.combinations(ORDER, 2):
        assert root_cause([stronger, weaker]) is stronger
        assert root_cause([weaker, stronger]) is stronger


def test_of_equal_errors_the_first_is_reported_and_of_none_none() -> None:
    first, second = ended(ExitCode.UNEXPECTED, "One"), ended(ExitCode.UNEXPECTED, "Other")
    assert root_cause([StageResult(stage=Stage.DISTILL), first, second]) is first
    assert root_cause([StageResult(stage=Stage.DISTILL)]) is None


@pytest.mark.parametrize(
    ("code", "weight"),
    [(None, None), (0, None), (3, None), (137, Weight.FAILED), (2, Weight.BAD_INPUT), (130, Weight.INTERRUPTED)],
)
def test_an_exit_code_without_a_word_has_its_weight(code: int | None, weight: Weight | None) -> None:
    assert weigh(code, None) is weight


def test_consequences_are_no_causes() -> None:
    assert [weight for weight in Weight if not weight.is_cause] == [Weight.PEER_LOST, Weight.INTERRUPTED]
    assert [weight for weight in Weight if weight.decisive] == [Weight.BAD_INPUT, Weight.DIVERGED]
