"""The order of lines, without a cluster."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from dmd_api.exit_codes import ExitCode
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmdctl.cluster.cluster import not_found
from dmdctl.cluster.log_lines import Line, Worker, format_line, in_order, latest, parse_line, worker_of
from dmdctl.cluster.logs import Wanted
from dmdctl.cluster.merging import Merge

SECOND = 10**9
NOON = 1_767_268_800 * SECOND
WORKERS = [Worker(Stage.DISTILL, 2, index, f"d-distill-2-{index}") for index in range(3)]


@pytest.mark.parametrize(
    ("raw", "at", "text"),
    [
        ("2026-01-01T12:00:00Z hello", NOON, "hello"),
        ("2026-01-01T12:00:00.5Z hello", NOON + SECOND // 2, "hello"),
        ("2026-01-01T12:00:00.000000001Z hello", NOON + 1, "hello"),
        ("2026-01-01T13:00:00.25+01:00  two  spaces", NOON + SECOND // 4, " two  spaces"),
        ("2026-01-01T12:00:00.1Z ", NOON + SECOND // 10, ""),
        ("2026-01-01T12:00:00.1Z", NOON + SECOND // 10, ""),
        ("unable to retrieve container logs", None, "unable to retrieve container logs"),
        ("", None, ""),
    ],
)
def test_the_time_before_each_line(raw: str, at: int | None, text: str) -> None:
    assert parse_line(raw) == (at, text)


def test_times_of_different_lengths_are_ordered_as_times() -> None:
    raw = ["2026-01-01T12:00:00.1234Z b", "2026-01-01T12:00:00.12345Z c", "2026-01-01T12:00:00Z a"]
    assert [text for _, text in sorted(parse_line(line) for line in raw)] == ["a", "b", "c"]


async def stream(worker: Worker, times: Sequence[int]) -> AsyncIterator[Line]:
    for at in times:
        await asyncio.sleep(0)
        yield Line(at, worker, str(at))


@pytest.mark.parametrize(
    "times",
    [
        [],
        [[]],
        [[1, 4, 7], [2, 5], [3, 6, 8, 9]],
        [[5], [], [1, 2, 3]],
        [[1, 1, 1], [1, 1], [0, 2]],
    ],
)
def test_streams_are_merged_by_time(times: list[list[int]]) -> None:
    async def merged() -> list[Line]:
        return [line async for line in in_order([stream(w, t) for w, t in zip(WORKERS, times, strict=False)])]

    lines = asyncio.run(merged())
    assert [line.at for line in lines] == sorted(itertools.chain(*times))
    for worker, own in zip(WORKERS, times, strict=False):
        assert [line.at for line in lines if line.worker == worker] == own


def test_what_a_source_raises_reaches_the_reader_and_the_others_are_ended() -> None:
    ended: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                await asyncio.sleep(0)
                yield 1
        finally:
            ended.append("endless")

    async def fails() -> AsyncIterator[int]:
        yield 2
        raise ValueError("no more")

    async def read() -> None:
        async with Merge[int]() as merge:
            merge.add(endless())
            merge.add(fails())
            while True:
                await merge.next()

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(read())
    assert ended == ["endless"]


def test_a_label_before_each_line_in_its_workers_colour() -> None:
    line = Line(0, WORKERS[1], "step 3 [ok]")
    assert format_line(line, colour=False) == "[distill-2/1] step 3 [ok]\n"
    coloured = format_line(line, colour=True)
    assert coloured.endswith("\x1b[0m step 3 [ok]\n")
    assert coloured.startswith("\x1b[")
    assert format_line(Line(0, WORKERS[2], "x"), colour=True)[:5] != coloured[:5]


@pytest.mark.parametrize(
    ("stage", "attempt", "names"),
    [
        (None, None, ["d2-0", "d2-1"]),
        (Stage.PREPARE, None, ["p1-0", "p1-0-again"]),
        (Stage.DISTILL, 1, ["d1-0"]),
        (None, 1, ["d1-0"]),
        (Stage.EVALUATE, None, []),
        (None, 7, []),
    ],
)
def test_the_latest_attempt_that_fits(stage: Stage | None, attempt: int | None, names: list[str]) -> None:
    workers = [
        Worker(Stage.DISTILL, 2, 1, "d2-1"),
        Worker(Stage.PREPARE, 1, 0, "p1-0-again"),
        Worker(Stage.DISTILL, 2, 0, "d2-0"),
        Worker(Stage.PREPARE, 1, 0, "p1-0"),
        Worker(Stage.DISTILL, 1, 0, "d1-0"),
    ]
    assert [worker.pod for worker in latest(workers, stage, attempt)] == names


def pod(state: dict[str, Any] | None, phase: str = "Running", **labels: str) -> dict[str, Any]:
    prefix = "dmd-operator.io"
    own = {f"{prefix}/stage": "distill", f"{prefix}/attempt": "2", "batch.kubernetes.io/job-completion-index": "1"}
    statuses = [] if state is None else [{"name": "sidecar", "state": {}}, {"name": "trainer", "state": state}]
    return {
        "metadata": {"name": "d-distill-2-1", "labels": {**own, **labels}},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


@pytest.mark.parametrize(
    ("content", "started", "over", "waiting"),
    [
        (pod({"running": {}}), True, False, ""),
        (pod({"terminated": {"exitCode": 1}}, phase="Failed"), True, True, ""),
        (
            pod({"waiting": {"reason": "ErrImagePull", "message": "no"}}, phase="Pending"),
            False,
            False,
            "ErrImagePull: no",
        ),
        (pod(None, phase="Pending"), False, False, ""),
        (pod(None, phase="Failed"), False, True, ""),
    ],
)
def test_a_worker_from_its_pod(content: dict[str, Any], started: bool, over: bool, waiting: str) -> None:
    expected = replace(WORKERS[1], started=started, over=over, waiting=waiting)
    assert worker_of(content) == expected


def test_pods_of_other_kinds_are_no_workers() -> None:
    assert worker_of({"metadata": {"name": "x", "labels": {"dmd-operator.io/distillation": "x"}}}) is None
    assert worker_of(pod(None, **{"dmd-operator.io/stage": "polish"})) is None


@pytest.mark.parametrize(
    ("wanted", "status", "over"),
    [
        (Wanted(), {"stage": "distill", "attempt": 2}, False),
        (Wanted(), {"stage": "distill", "completionTime": "2026-01-01T12:00:00Z"}, True),
        (Wanted(Stage.PREFLIGHT), {"stage": "prepare", "conditions": "PreflightPassed"}, True),
        (Wanted(Stage.DISTILL), {"stage": "prepare", "conditions": "PreflightPassed"}, False),
        (Wanted(Stage.DISTILL, 1), {"stage": "distill", "attempt": 1}, False),
        (Wanted(Stage.DISTILL, 1), {"stage": "distill", "attempt": 1, "endedAttempt": 1}, True),
        (Wanted(Stage.DISTILL, 2), {"stage": "distill", "attempt": 1, "endedAttempt": 1}, False),
        (Wanted(Stage.EVALUATE, 1), {"stage": "distill", "attempt": 1, "endedAttempt": 1}, False),
        (Wanted(None, 1), {"stage": "distill", "attempt": 1, "endedAttempt": 1}, True),
    ],
)
def test_when_there_will_be_no_more_logs(wanted: Wanted, status: dict[str, Any], over: bool) -> None:
    if kind := status.get("conditions"):
        at = "2026-01-01T12:00:00Z"
        status = status | {"conditions": [{"type": kind, "status": "True", "reason": kind, "lastTransitionTime": at}]}
    assert wanted.over(RunStatus.model_validate(status)) is over


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        (["distill-sd15", "distill-sdxl", "other"], "did you mean distill-sd15"),
        (["other"], "there is other"),
        ([f"run-{i:02}" for i in range(12)], "there are run-00, run-01"),
        ([], "it has none at all"),
    ],
)
def test_a_name_that_is_not_there(there: list[str], hint: str) -> None:
    error = not_found("distil-sd15", "research", there)
    assert hint in error.message
    assert error.exit_code == ExitCode.BAD_INPUT
