"""What a pod can make the operator say, and what it cannot put off."""

import asyncio
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from dmd_api.runtime import Progress, StageResult
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator import allowance
from dmd_operator.cluster import Cluster
from dmd_operator.conditions import LONGEST_MESSAGE, shown
from dmd_operator.decision import Event
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.reconcile import Reconciler
from dmd_operator.seen import Key, Seen
from dmd_operator.settings import OperatorSettings
from tests.operator import live
from tests.operator.test_decide import NOW, ended, job, look, reason

KEY = Key("team", "run")


class Talkative:
    """A cluster with one run that distils, whose rank 0 warns of something else each time that it is asked."""

    def __init__(self, **spec: Any) -> None:
        began = datetime.now(UTC) - timedelta(hours=1)
        status = RunStatus(stage=Stage.DISTILL, attempt=1, start_time=began, active_since=began)
        metadata = {"name": "run", "namespace": "team", "uid": "u", "resourceVersion": "1", "generation": 1}
        written = {**live.manifest("run", "team", **spec), "metadata": metadata, "status": status.to_resource()}
        self.found: dict[str, Any] = written
        self.reported: list[Event] = []
        self.asked = 0

    async def resource(self, _: Key) -> dict[str, Any]:
        return self.found

    async def children(self, _: Mapping[str, Any]) -> tuple[list[ObservedJob], list[tuple[str, ObservedPod]]]:
        pods = [ObservedPod(i, "Running", ip="127.0.0.1", name=f"pod-{i}") for i in range(2)]
        one = ObservedJob("run-distill-1", Stage.DISTILL, 1, datetime.now(UTC), completions=2, uid="job")
        return [one], [("job", pod) for pod in pods]

    async def progress(self, _: str) -> Progress:
        self.asked += 1
        losses = {"fake_score": math.nan, "gan": math.inf}
        warnings = [f"{self.asked}: {i}" for i in range(16)]
        return Progress(stage=Stage.DISTILL, step=self.asked, total=2**62, losses=losses, warnings=warnings)

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
        version = str(int(resource["metadata"]["resourceVersion"]) + 1)
        self.found = {**resource, "metadata": {**resource["metadata"], "resourceVersion": version}, "status": status}
        return self.found

    async def report(self, _: Mapping[str, Any], event: Event) -> None:
        self.reported.append(event)

    async def delete_attempt(self, *_: str) -> None:
        pass


def looks(cluster: Talkative, count: int) -> None:
    reconciler = Reconciler(cast(Cluster, cluster), Seen(), OperatorSettings())

    async def run() -> None:
        for _ in range(count):
            await reconciler.look(KEY, 0.0)

    asyncio.run(run())


def test_a_pod_that_warns_without_end_is_reported_so_many_times() -> None:
    cluster = Talkative()
    looks(cluster, 10)
    assert cluster.asked >= 10
    assert len(cluster.reported) == allowance.AT_ONCE
    assert len(cluster.found["status"]["warnings"]) == 16, "the status has the present ones"


def test_whatever_a_pod_says_the_deadline_holds() -> None:
    cluster = Talkative(activeDeadlineSeconds=60)
    looks(cluster, 1)
    assert cluster.found["status"]["phase"] == "Failed"
    assert [event.reason for event in cluster.reported if event.reason == "DeadlineExceeded"]


def test_an_allowance_grows_back_one_at_a_time_and_never_beyond_its_start() -> None:
    one = allowance.Allowance()
    assert sum(one.take(1000.0) for _ in range(100)) == allowance.AT_ONCE
    assert not one.take(1000.0 + allowance.SECONDS_EACH - 1)
    assert one.take(1000.0 + allowance.SECONDS_EACH)
    assert not one.take(1000.0 + allowance.SECONDS_EACH)
    assert sum(one.take(1e9) for _ in range(100)) == allowance.AT_ONCE


def test_text_of_pods_is_written_without_control_characters_and_not_too_long() -> None:
    assert shown("a\x1b[2Jb\nc\u202ed é\U0001f600") == "a\ufffd[2Jb\nc\ufffdd é\U0001f600"
    assert len(shown("x" * 100_000)) == LONGEST_MESSAGE
    decision = look(job(Stage.DISTILL, 1, ended(0, 2, "BadInput", "no \x1b]0;x\x07 teacher")))
    condition = decision.status.condition("Failed")
    assert condition is not None
    assert condition.message == "worker 0: no \ufffd]0;x\ufffd teacher"


@pytest.mark.parametrize("fid", ["NaN", "1e999", "9" * 400, '"\\u001b"', "null", "[]"])
def test_a_result_out_of_its_bounds_keeps_no_run_from_its_end(fid: str) -> None:
    text = f'{{"stage": "evaluate", "result": {{"fid": {fid}, "gatesPassed": true, "modelVersion": "{"v" * 2000}"}}}}'
    pod = ObservedPod(0, "Succeeded", exit_code=0, result=StageResult.model_validate_json(text))
    decision = look(job(Stage.EVALUATE, 1, pod, complete=True), stage=Stage.EVALUATE)
    assert reason(decision, "Complete") == "True Complete"
    assert (decision.status.fid, decision.status.model_version) == (None, None)
    assert decision.status.completion_time == NOW
