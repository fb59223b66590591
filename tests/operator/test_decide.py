"""The decision as a table: what is known and observed on the left, what follows on the right."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dmd_api.exit_codes import ExitCode
from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import PEER_LOST, Progress, StageError, StageResult
from dmd_api.stages import Stage, stages
from dmd_api.status import STAGE_DONE, RunStatus
from dmd_operator.decide import decide
from dmd_operator.decision import Decision
from dmd_operator.observed import DELETED, ObservedJob, ObservedPod
from dmd_operator.run import Run

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def manifest(**spec: Any) -> DMDDistillation:
    return DMDDistillation.model_validate(
        {
            "apiVersion": "dmd-operator.io/v1alpha1",
            "kind": "DMDDistillation",
            "metadata": {"name": "run"},
            "spec": {
                "teacher": {"uri": "builtin://digits-teacher"},
                "method": {"regression": {"pairs": 8}},
                "training": {"generatorUpdates": 600, "batchSize": 8, "learningRate": 1e-4},
                "workers": {"nodes": 2},
                "storage": {"uri": "s3://bucket/runs"},
                **spec,
            },
        }
    )


def job(stage: Stage = Stage.DISTILL, attempt: int = 1, *pods: ObservedPod, **fields: Any) -> ObservedJob:
    created = fields.pop("created", NOW - timedelta(minutes=1))
    return ObservedJob(f"run-{stage}-{attempt}", stage, attempt, created, pods=pods, **fields)


def running(index: int = 0) -> ObservedPod:
    return ObservedPod(index, "Running")


def ended(index: int, code: int, reason: str = "", message: str = "") -> ObservedPod:
    error = StageError(reason=reason, message=message, exit_code=code) if message else None
    result = StageResult(stage=Stage.DISTILL, error=error) if error else None
    return ObservedPod(index, "Succeeded" if code == 0 else "Failed", exit_code=code, result=result)


def look(*jobs: ObservedJob, spec: dict[str, Any] | None = None, **fields: Any) -> Decision:
    known = {"stage": Stage.DISTILL, "attempt": 1, "start_time": NOW, "active_since": NOW}
    progress, now = fields.pop("progress", None), fields.pop("now", NOW)
    status = RunStatus(**{**known, **fields})
    return decide(Run(manifest(**(spec or {})), status, jobs, now, progress=progress))


def reason(decision: Decision, kind: str) -> str | None:
    condition = decision.status.condition(kind)
    return f"{condition.status} {condition.reason}" if condition else None


def test_a_new_run_begins_with_preflight() -> None:
    decision = decide(Run(manifest(), RunStatus(), (), NOW, generation=3))
    assert decision.create == (Stage.PREFLIGHT, 1)
    assert decision.status.phase == "Preflight"
    assert decision.status.start_time == NOW
    assert decision.status.observed_generation == 3


def test_without_a_regression_there_are_no_pairs_to_prepare() -> None:
    images = {"images": {"uri": "s3://b/i"}}
    assert stages(manifest(method={"name": "DMD2", "gan": {}}, data=images)) == [
        Stage.PREFLIGHT,
        Stage.DISTILL,
        Stage.EVALUATE,
    ]
    assert stages(manifest()) == list(Stage)


@pytest.mark.parametrize(
    ("stage", "following", "condition"),
    [
        (Stage.PREFLIGHT, Stage.PREPARE, "PreflightPassed"),
        (Stage.PREPARE, Stage.DISTILL, "Prepared"),
        (Stage.DISTILL, Stage.EVALUATE, "Distilled"),
    ],
)
def test_a_completed_job_is_followed_by_the_next_stage_in_the_same_look(
    stage: Stage, following: Stage, condition: str
) -> None:
    decision = look(job(stage, 3, ended(0, 0), complete=True), stage=stage, attempt=3)
    assert decision.create == (following, 1)
    assert reason(decision, condition) == f"True {condition}"
    assert decision.status.stage is following


OWN = ended(0, ExitCode.INFRASTRUCTURE, "InfrastructureUnavailable", "s3 is away")
LEFT = ended(0, ExitCode.INFRASTRUCTURE, PEER_LOST, "another worker is gone")
BAD = ended(0, ExitCode.BAD_INPUT, "BadInput", "no such teacher")
NAN = ended(1, ExitCode.DIVERGED, "TrainingDiverged", "loss is nan")
INTERRUPTED = ended(1, ExitCode.INTERRUPTED, "Interrupted", "stopped")
UNREACHABLE = ObservedPod(1, "Running", lost="node unreachable", past_grace=True)


@pytest.mark.parametrize(
    ("pods", "fields", "end", "counted"),
    [
        pytest.param((running(0), running(1)), {}, None, 0, id="running"),
        pytest.param((running(0), ended(1, 0)), {}, None, 0, id="one done, one at work"),
        pytest.param((OWN, running(1)), {}, "AttemptFailed", 1, id="failed, and its Job does not know yet"),
        pytest.param((OWN, INTERRUPTED), {"failed": "x"}, "AttemptFailed", 1, id="the cause, not the consequence"),
        pytest.param((ended(0, 137), LEFT), {"failed": "x"}, "AttemptFailed", 1, id="killed for memory"),
        pytest.param((LEFT, UNREACHABLE), {}, "Disrupted", 0, id="node lost"),
        pytest.param((running(0), UNREACHABLE), {}, "Disrupted", 0, id="node lost, the survivor does not know yet"),
        pytest.param((LEFT,), {"failed": "x"}, "Disrupted", 0, id="the pod of index 1 was deleted and is gone"),
        pytest.param((LEFT, INTERRUPTED), {"failed": "x"}, "Disrupted", 0, id="interrupted"),
        pytest.param((running(0), running(1)), {"deleting": True}, "Disrupted", 0, id="Job being deleted"),
        pytest.param((), {"failed": "quota"}, "AttemptFailed", 1, id="a Job that failed without pods"),
        pytest.param((NAN, LEFT), {"failed": "x"}, "Failed", 0, id="diverged"),
        pytest.param((BAD, UNREACHABLE), {}, "Failed", 0, id="bad input beats everything"),
    ],
)
def test_how_an_attempt_ends(
    pods: tuple[ObservedPod, ...], fields: dict[str, Any], end: str | None, counted: int
) -> None:
    decision = look(job(Stage.DISTILL, 1, *pods, **fields))
    assert decision.create is None
    assert decision.status.failures == counted
    if end is None:
        assert decision.status.ended_attempt == 0
        assert decision.delete == ()
    elif end == "Failed":
        assert decision.status.phase == "Failed"
        assert decision.status.completion_time == NOW
    else:
        assert reason(decision, "Healthy") == f"False {end}"
        assert decision.status.ended_attempt == 1


def test_an_end_names_worker_and_cause() -> None:
    decision = look(job(Stage.DISTILL, 1, LEFT, UNREACHABLE), step=410, total=600, checkpoint_step=400)
    (event,) = decision.events
    assert event.message == ("distill: attempt 1 ended: worker 1 lost, node unreachable; going on from step 400 of 600")
    assert decision.delete == ("run-distill-1",)


def test_a_job_that_vanished_is_a_disruption_and_one_of_a_done_stage_is_not_missed() -> None:
    decision = look()
    assert reason(decision, "Healthy") == "False Disrupted"
    assert look(attempt=1, ended_attempt=1).create == (Stage.DISTILL, 2)
    assert look(stage=Stage.EVALUATE, attempt=0).create == (Stage.EVALUATE, 1)


def test_no_attempt_begins_beside_pods_of_the_last_one() -> None:
    waiting = look(job(Stage.DISTILL, 1, running(0), deleting=True), ended_attempt=1)
    assert (waiting.create, waiting.delete) == (None, ())
    assert waiting.again is not None
    assert look(job(Stage.DISTILL, 1, running(0)), ended_attempt=1).delete == ("run-distill-1",)
    gone = look(job(Stage.DISTILL, 1, LEFT, UNREACHABLE, deleting=True), ended_attempt=1)
    assert gone.create == (Stage.DISTILL, 2)


def test_a_failed_job_is_left_to_end_by_itself_and_stays_for_its_logs() -> None:
    deleted_by_its_controller = ObservedPod(1, "Running", lost=DELETED)
    for pods, fields in (
        ((OWN, deleted_by_its_controller), {"failing": True}),
        ((OWN, LEFT), {}),
        ((OWN, INTERRUPTED), {"failed": "x"}),
    ):
        assert look(job(Stage.DISTILL, 1, *pods, **fields)).delete == ()
        later = look(job(Stage.DISTILL, 1, *pods, **fields), ended_attempt=1)
        assert later.delete == ()
    # It stays until the attempt after the next one.
    done = [job(Stage.DISTILL, number, OWN, failed="x") for number in (1, 2)]
    assert look(*done, attempt=2, ended_attempt=2).delete == ("run-distill-1",)
    # Who is on a lost node may never be seen to end.
    assert look(job(Stage.DISTILL, 1, OWN, UNREACHABLE, failing=True)).delete == ("run-distill-1",)


def test_an_attempt_runs_when_all_its_pods_are_there() -> None:
    one_of_two = job(Stage.DISTILL, 1, running(0), completions=2)
    assert reason(look(one_of_two), "Healthy") == "Unknown NoPods"
    assert look(one_of_two).status.last_progress_time is None
    both = job(Stage.PREPARE, 1, running(0), ended(1, 0), completions=2)
    assert reason(look(both, stage=Stage.PREPARE), "Healthy") == "True Running"
    assert look(both, stage=Stage.PREPARE).status.last_progress_time == NOW


def test_what_was_never_seen_does_not_stall() -> None:
    at_work = job(Stage.DISTILL, 1, running(0), running(1))
    later = look(at_work, last_progress_time=NOW - timedelta(hours=1))
    assert later.status.ended_attempt == 0
    assert reason(later, "Healthy") == "Unknown ProgressUnknown"


def test_failures_back_off_and_disruptions_do_not() -> None:
    long_ago = NOW - timedelta(hours=1)
    waits = []
    for retries in range(8):
        decision = look(job(Stage.DISTILL, 1, OWN, created=long_ago, failed="x"), retries=retries)
        assert decision.status.next_attempt_time is not None
        waits.append((decision.status.next_attempt_time - NOW) / SECOND)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert look(job(Stage.DISTILL, 1, LEFT, created=long_ago, failed="x")).status.next_attempt_time == NOW


def test_the_back_off_is_waited_for() -> None:
    decision = look(ended_attempt=1, next_attempt_time=NOW + 7 * SECOND)
    assert (decision.create, decision.again) == (None, 7 * SECOND)
    assert look(ended_attempt=1, next_attempt_time=NOW).create == (Stage.DISTILL, 2)


def test_restarts_run_out_and_raising_them_goes_on() -> None:
    spec = {"maxRestarts": 2}
    failed = look(job(Stage.DISTILL, 3, OWN, failed="x"), spec=spec, attempt=3, failures=2)
    assert reason(failed, "Failed") == "True RestartsExhausted"
    assert "s3 is away" in failed.events[0].message
    still = decide(Run(manifest(maxRestarts=2), failed.status, (), NOW))
    assert still.create is None
    raised = decide(Run(manifest(maxRestarts=3), failed.status, (), NOW))
    assert raised.create == (Stage.DISTILL, 4)
    assert reason(raised, "Failed") == "False MaxRestartsRaised"
    assert raised.status.completion_time is None


def test_what_preflight_finds_is_tried_again_for_ever_and_heals() -> None:
    found = look(job(Stage.PREFLIGHT, 9, BAD, failed="x"), stage=Stage.PREFLIGHT, attempt=9, retries=40)
    condition = found.status.condition("PreflightPassed")
    assert condition is not None
    assert (condition.status, condition.message) == ("False", "worker 0: no such teacher")
    assert found.status.failures == 0
    assert found.status.next_attempt_time == NOW + timedelta(minutes=1)
    healed = decide(
        Run(
            manifest(),
            found.status.model_copy(update={"attempt": 10}),
            (job(Stage.PREFLIGHT, 10, ended(0, 0), complete=True),),
            NOW,
        )
    )
    assert reason(healed, "PreflightPassed") == "True PreflightPassed"


def test_a_lost_pod_of_prepare_is_left_to_its_job() -> None:
    pods = (running(0), UNREACHABLE, OWN)
    assert look(job(Stage.PREPARE, 1, *pods), stage=Stage.PREPARE).status.ended_attempt == 0
    assert look(job(Stage.PREPARE, 1, *pods, failed="x"), stage=Stage.PREPARE).status.failures == 1
    hopeless = look(job(Stage.PREPARE, 1, running(1), BAD), stage=Stage.PREPARE)
    assert reason(hopeless, "Failed") == "True BadInput"


def test_suspending_ends_the_attempt_and_resuming_begins_the_next() -> None:
    at_work = job(Stage.DISTILL, 1, running(0), running(1))
    stopped = look(at_work, spec={"suspend": True}, now=NOW + 60 * SECOND)
    assert stopped.delete == ("run-distill-1",)
    assert reason(stopped, "Suspended") == "True Suspended"
    assert (stopped.status.active_seconds, stopped.status.active_since) == (60, None)
    assert stopped.status.failures == 0
    again = decide(Run(manifest(suspend=True), stopped.status, (), NOW + 90 * SECOND))
    assert (again.create, again.events, again.again) == (None, (), None)
    resumed = decide(Run(manifest(), again.status, (), NOW + 120 * SECOND))
    assert resumed.create == (Stage.DISTILL, 2)
    assert reason(resumed, "Suspended") == "False Resumed"


def test_what_completed_before_the_suspension_was_seen_is_done() -> None:
    decision = look(job(Stage.DISTILL, 1, ended(0, 0), complete=True), spec={"suspend": True})
    assert decision.create is None
    assert decision.status.is_true("Distilled")
    assert decide(Run(manifest(), decision.status, (), NOW)).create == (Stage.EVALUATE, 1)


def test_the_deadline_counts_active_time_only() -> None:
    spec = {"activeDeadlineSeconds": 100}
    at_work = job(Stage.DISTILL, 1, running(0))
    going = look(at_work, spec=spec, now=NOW + 97 * SECOND)
    assert (going.status.phase, going.again) == ("Pending", 3 * SECOND)
    late = look(at_work, spec=spec, active_seconds=50, now=NOW + 50 * SECOND)
    assert reason(late, "Failed") == "True DeadlineExceeded"
    assert late.delete == ("run-distill-1",)
    done = job(Stage.EVALUATE, 1, ended(0, 0), complete=True)
    assert look(done, spec=spec, stage=Stage.EVALUATE, now=NOW + 200 * SECOND).status.phase == "Complete"


def test_a_finished_run_lives_for_its_time() -> None:
    spec = {"ttlSecondsAfterFinished": 60}
    finished = {"completion_time": NOW, "phase": "Complete", "stage": Stage.EVALUATE}
    assert look(spec=spec, now=NOW + 59 * SECOND, **finished).again == SECOND
    assert look(spec=spec, now=NOW + 60 * SECOND, **finished).delete_resource
    assert not look(now=NOW + timedelta(days=999), **finished).delete_resource


def test_gates_that_fail_leave_the_run_complete() -> None:
    result = StageResult(stage=Stage.EVALUATE, result={"modelVersion": "7", "gatesFailed": "FID = 3"})
    pod = ObservedPod(0, "Failed", exit_code=ExitCode.GATES_FAILED, result=result)
    decision = look(job(Stage.EVALUATE, 1, pod, failed="x"), stage=Stage.EVALUATE)
    assert decision.status.phase == "Complete"
    assert decision.status.model_version == "7"
    assert reason(decision, "GatesPassed") == "False GatesFailed"
    gates = decision.status.condition("GatesPassed")
    assert gates is not None
    assert "FID = 3" in gates.message


def test_where_a_generator_is_published_is_in_the_status() -> None:
    result = StageResult(stage=Stage.EVALUATE, result={"modelVersion": "7", "published": "hf://team/model@abc"})
    pod = ObservedPod(0, "Succeeded", exit_code=ExitCode.DONE, result=result)
    done = job(Stage.EVALUATE, 1, pod, complete=True)
    assert look(done, stage=Stage.EVALUATE).status.published == "hf://team/model@abc"


def test_progress_is_shown_and_a_step_that_does_not_move_is_a_stall() -> None:
    at_work = job(Stage.DISTILL, 1, running(0), running(1))
    shown = Progress(stage=Stage.DISTILL, step=300, total=600, eta_seconds=3900, fid=1.5)
    seen = look(at_work, progress=shown, retries=2)
    assert (seen.status.step, seen.status.progress, seen.status.eta, seen.status.fid) == (300, "50%", "1h5m", 1.5)
    assert (seen.status.retries, seen.status.last_progress_time) == (0, NOW)
    later = decide(Run(manifest(), seen.status, (at_work,), NOW + timedelta(minutes=30), progress=shown))
    assert reason(later, "Stalled") == "True NoProgress"
    assert later.delete == ("run-distill-1",)
    assert later.status.failures == 1
    moved = shown.model_copy(update={"step": 301})
    assert not decide(
        Run(manifest(), seen.status, (at_work,), NOW + timedelta(minutes=30), progress=moved)
    ).status.condition("Stalled")


def test_progress_of_an_earlier_attempt_is_not_taken_for_this_one() -> None:
    shown = Progress(stage=Stage.DISTILL, step=300, total=600, attempt=1)
    assert look(job(Stage.DISTILL, 2, running(0)), attempt=2, progress=shown).status.step is None


def test_why_pods_wait_is_told() -> None:
    lacking = "Unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    decision = look(job(Stage.DISTILL, 1, ObservedPod(0, waiting=lacking), ObservedPod(1)))
    condition = decision.status.condition("Healthy")
    assert condition is not None
    assert (condition.status, condition.reason) == ("Unknown", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in condition.message
    assert reason(look(job(Stage.DISTILL, 1)), "Healthy") == "Unknown NoPods"
    assert reason(look(job(Stage.DISTILL, 1, suspended=True)), "Healthy") == "Unknown Queued"


def test_a_secret_that_is_missing_is_preflights_finding_and_heals() -> None:
    waiting = ObservedPod(0, waiting='CreateContainerConfigError: secret "s3" not found')
    found = look(job(Stage.PREFLIGHT, 1, waiting), stage=Stage.PREFLIGHT)
    condition = found.status.condition("PreflightPassed")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "CreateContainerConfigError")
    assert condition.message.startswith(
        'worker 0: CreateContainerConfigError: secret "s3" not found; create the Secret'
    )
    done = job(Stage.PREFLIGHT, 1, ended(0, 0), complete=True)
    assert decide(Run(manifest(), found.status, (done,), NOW)).status.is_true("PreflightPassed")


def test_deciding_twice_changes_nothing() -> None:
    for jobs in ((), (job(Stage.DISTILL, 1, OWN, failed="x"),), (job(Stage.DISTILL, 1, running(0)),)):
        first = look(*jobs)
        second = decide(Run(manifest(), first.status, jobs, NOW))
        if first.create is None:
            assert second.status.failures == first.status.failures
            assert second.status.conditions == first.status.conditions


class Cluster:
    """Jobs that do what random events make them do, and an operator that forgets and is killed anywhere."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = NOW
        self.jobs: dict[str, ObservedJob] = {}
        self.status = RunStatus()
        self.created: list[tuple[Stage, int]] = []
        self.completed: list[Stage] = []

    def happen(self) -> None:
        """Something happens to a Job, or nothing."""
        self.now += self.random.choice([SECOND, 10 * SECOND, timedelta(minutes=7)])
        for name, one in list(self.jobs.items()):
            match self.random.randrange(8):
                case _ if one.deleting or one.complete or one.failed:
                    if one.deleting:
                        del self.jobs[name]
                case 0:
                    del self.jobs[name]
                case 1:
                    self.jobs[name] = replace(one, pods=(OWN, INTERRUPTED), failed="x")
                case 2:
                    self.jobs[name] = replace(one, pods=(LEFT, UNREACHABLE))
                case 3 | 4 | 5:
                    self.jobs[name] = replace(one, pods=(ended(0, 0), ended(1, 0)), complete=True)
                    self.completed.append(one.stage)
                case _:
                    self.jobs[name] = replace(one, pods=(running(0), running(1)))

    def reconcile(self) -> None:
        """Looks, and applies what it decided up to a random point."""
        suspend = self.random.random() < 0.1
        jobs = tuple(self.jobs.values())
        decision = decide(Run(manifest(suspend=suspend, maxRestarts=10_000), self.status, jobs, self.now))
        steps = self.random.randrange(5)
        if steps > 0:
            for name in decision.delete:
                self.jobs[name] = replace(self.jobs[name], deleting=True)
        if steps > 1:
            self.status = RunStatus.model_validate_json(decision.status.model_dump_json(by_alias=True))
        if steps > 2 and decision.create:
            stage, attempt = decision.create
            assert all(old.over or old.deleting for old in jobs), "two attempts at once"
            assert decision.create not in self.created, "an attempt's number is used once"
            assert not self.status.is_true(STAGE_DONE[stage]), "a stage that is done does not run again"
            self.created.append(decision.create)
            fresh = job(stage, attempt, ObservedPod(0), ObservedPod(1), created=self.now)
            self.jobs[fresh.name] = fresh


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_in_whatever_order_the_run_completes(seed: int) -> None:
    cluster = Cluster(seed)
    for _ in range(2000):
        cluster.reconcile()
        if cluster.status.phase == "Complete":
            break
        cluster.happen()
    assert cluster.status.phase == "Complete"
    assert set(cluster.completed) == set(Stage)
