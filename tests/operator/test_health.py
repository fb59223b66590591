"""Training that goes wrong while it runs: the condition, and each warning's event once."""

from dataclasses import replace

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.decide import decide
from dmd_operator.decision import Decision
from dmd_operator.run import Run
from tests.operator.test_decide import NOW, SECOND, ended, job, look, manifest, reason, running

COPIES = "the images of one condition become alike; raise spec.method.regression.weight"
FOREIGN = "the images are nothing the teacher knows; lower spec.training.learningRate"
AT_WORK = job(Stage.DISTILL, 1, running(0), running(1))


def shown(step: int, *warnings: str, attempt: int = 1) -> Progress:
    return Progress(stage=Stage.DISTILL, step=step, total=600, attempt=attempt, warnings=list(warnings))


def after(before: Decision, progress: Progress | None, seconds: int = 5) -> Decision:
    # The status goes through the API server, where it is JSON.
    status = RunStatus.model_validate_json(before.status.model_dump_json(by_alias=True))
    return decide(Run(manifest(), status, (AT_WORK,), NOW + seconds * SECOND, progress=progress))


def message(decision: Decision) -> str:
    condition = decision.status.condition("Healthy")
    assert condition is not None
    return condition.message


def test_a_warning_is_a_condition_for_as_long_as_it_lasts_and_an_event_once() -> None:
    well = look(AT_WORK, progress=shown(10))
    assert (reason(well, "Healthy"), well.events) == ("True Running", ())

    first = after(well, shown(20, COPIES))
    assert reason(first, "Healthy") == "False Collapsing"
    assert message(first) == COPIES
    assert [(event.reason, event.message, event.warning) for event in first.events] == [("Collapsing", COPIES, True)]

    still = after(first, shown(30, COPIES))
    assert (reason(still, "Healthy"), still.events) == ("False Collapsing", ())
    silent = after(still, None)
    assert (reason(silent, "Healthy"), silent.events) == ("False Collapsing", ())

    second = after(silent, shown(40, COPIES, FOREIGN))
    assert [event.message for event in second.events] == [FOREIGN]
    assert message(second) == f"{COPIES}; also: {FOREIGN}"

    healed = after(second, shown(50))
    assert (reason(healed, "Healthy"), healed.events) == ("True Running", ())
    assert [event.message for event in after(healed, shown(60, COPIES)).events] == [COPIES]


def test_a_warning_stops_nothing_and_does_not_outlive_its_attempt() -> None:
    warned = look(AT_WORK, progress=shown(20, COPIES))
    assert (warned.delete, warned.status.ended_attempt) == ((), 0)
    assert look(AT_WORK, progress=shown(20, COPIES, attempt=2)).events == (), "another attempt's"
    following = look(ended_attempt=1, warnings=(COPIES,))
    assert following.create == (Stage.DISTILL, 2)
    assert following.status.warnings == ()
    done = look(replace(AT_WORK, pods=(ended(0, 0), ended(1, 0)), complete=True), warnings=(COPIES,))
    assert done.status.warnings == ()


def test_a_run_that_ended_itself_has_failed_with_its_own_reason() -> None:
    pod = ended(0, ExitCode.DIVERGED, "TrainingCollapsed", COPIES)
    decision = look(job(Stage.DISTILL, 1, pod, running(1)))
    assert reason(decision, "Failed") == "True TrainingCollapsed"
    assert COPIES in decision.events[0].message
    diverged = ended(0, ExitCode.DIVERGED, "TrainingDiverged", "loss is nan")
    assert reason(look(job(Stage.DISTILL, 1, diverged)), "Failed") == "True TrainingDiverged"
    assert reason(look(job(Stage.DISTILL, 1, ended(0, ExitCode.DIVERGED))), "Failed") == "True TrainingDiverged"
