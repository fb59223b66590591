"""The operator asks pods that answer whatever they want."""

import asyncio
import gzip
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.cluster import Cluster, progress_session
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer

TIMEOUT = 10.0
"""Seconds: a busy machine may hold up an answer that is there for a while."""
DRIPPING_TIMEOUT = 4.0
OK = b"HTTP/1.1 200 OK\r\n"
GOOD = b'{"stage": "distill", "step": 7, "attempt": 2}'


async def ask(address: str) -> Progress | None:
    async with ApiClient(Configuration()) as api, progress_session(TIMEOUT) as http:
        return await Cluster(api, http).progress(address)


@asynccontextmanager
async def answers(*pieces: bytes, pause: float = 0.0) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers everything with these bytes; its address, and the requests that it got."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def answered(*pieces: bytes) -> Progress | None:
    async def run() -> Progress | None:
        async with answers(*pieces) as (address, _):
            return await ask(address)

    return asyncio.run(run())


def with_length(body: bytes, headers: bytes = b"") -> bytes:
    return OK + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_an_answer_is_read() -> None:
    progress = answered(with_length(GOOD))
    assert progress is not None
    assert (progress.stage, progress.step, progress.attempt) == (Stage.DISTILL, 7, 2)
    assert answered(OK + b"\r\n" + GOOD) == progress, "nobody need say how long it is"


@pytest.mark.parametrize(
    "answer",
    [
        with_length(gzip.compress(GOOD + b" " * 1_000_000), b"Content-Encoding: gzip\r\n"),
        with_length(gzip.compress(GOOD), b"Content-Encoding: gzip\r\n"),
        with_length(GOOD + b" " * 100_000),
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b" " * 0x8000 + b"\r\n" * 1 + b"8000\r\n" * 9,
        OK + b"Transfer-Encoding: chunked\r\n\r\nnot a number\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n",
        with_length(b"[" * 60_000),
        with_length(b'{"stage": "distill", "step": '),
        with_length(b'{"stage": "lunch"}'),
        with_length(b'{"stage": "distill", "attempt": "first"}'),
        with_length(b"null"),
        with_length(b"\xff"),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
    ids=[
        "bomb",
        "compressed",
        "long",
        "broken chunks",
        "no chunks",
        "redirect",
        "deep",
        "cut",
        "no stage",
        "no attempt",
        "null",
        "no text",
        "no HTTP",
        "nothing",
    ],
)
def test_what_is_no_progress_is_none(answer: bytes) -> None:
    assert answered(answer) is None


def test_a_pod_is_asked_not_to_compress_and_cannot_send_the_operator_elsewhere() -> None:
    async def run() -> None:
        async with answers(with_length(GOOD)) as (elsewhere, found):
            redirect = b"HTTP/1.1 307 Moved\r\nLocation: http://%s/\r\n\r\n" % elsewhere.encode()
            async with answers(redirect) as (address, requests):
                assert await ask(address) is None
        assert b"Accept-Encoding: identity" in requests[0]
        assert not found

    asyncio.run(run())


def test_a_pod_that_drips_holds_up_nobody() -> None:
    """A byte now and again would keep a connection for ever, and a hundred of them all that there are."""

    async def run() -> None:
        drip = [OK + b"Content-Length: 1000\r\n\r\n", *(b" " for _ in range(1000))]
        async with (
            ApiClient(Configuration()) as api,
            progress_session(DRIPPING_TIMEOUT) as http,
            answers(*drip, pause=DRIPPING_TIMEOUT / 8) as (slow, _),
            answers(with_length(GOOD)) as (good, _),
        ):
            cluster = Cluster(api, http)
            dripping = [asyncio.create_task(cluster.progress(slow)) for _ in range(150)]
            await asyncio.sleep(0)
            assert await cluster.progress(good) is not None
            assert not any(task.done() for task in dripping), "it waited for none of them"
            assert await asyncio.gather(*dripping) == [None] * 150

    asyncio.run(run())


BAD: dict[str, list[Any]] = {
    "activity": ["x" * 300, "\x1b]0;title\x07", "a\nb", "\u202etxt", "\ud800", 3, None, {}],
    "step": [-1, 2**63, 1e400, "many", [], 0.5, int("9" * 4000)],
    "total": [-1, 2**64, {"a": 1}],
    "unit": ["\x9b31m", []],
    "eta_seconds": [math.nan, math.inf, -1, 1e300, "soon"],
    "images_per_second": [math.nan, -math.inf, []],
    "fid": [math.nan, "good"],
    "best_step": [-5, 1.5, 2**70],
    "checkpoint_step": [2**63],
    "losses": [[], "none", {str(i): 1.0 for i in range(17)}],
    "warnings": ["one", ["x"] * 17, 5],
    "mlflow_run": ["\x00"],
    "mlflow_run_url": ["http://x/" + "y" * 3000],
    "messages": [3, ["x"] * 1000],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_field_out_of_its_bounds_is_dropped_alone(field: str, value: Any) -> None:
    good = {"stage": "distill", "attempt": 2, "activity": "training", "step": 7, "losses": {"fake_score": 0.5}}
    body = json.dumps({**good, field: value}).encode()
    expected = Progress.from_answer(json.dumps({k: v for k, v in good.items() if k != field}).encode())
    assert Progress.from_answer(body) == expected


def test_of_several_measures_and_warnings_the_bad_ones_are_dropped() -> None:
    losses = {"good": 1, "\x1b[2J": 1.0, "x" * 300: 1.0, "text": "much", "none": None}
    warnings = ["fine", "\x1b[31mred", "y" * 2000, 7]
    progress = Progress.from_answer(json.dumps({"stage": "distill", "losses": losses, "warnings": warnings}).encode())
    assert progress.losses == {"good": 1.0}
    assert progress.warnings == ["fine"]


def test_a_number_of_any_length_takes_no_time_and_is_dropped_alone() -> None:
    progress = Progress.from_answer(b'{"stage": "distill", "total": 9, "step": ' + b"9" * 60_000 + b"}")
    assert (progress.step, progress.total) == (0, 9)


def test_losses_that_are_not_finite_arrive_and_can_be_written_and_read() -> None:
    board = ProgressBoard(Stage.DISTILL)
    board.update(step=3, images_per_second=math.nan, losses={"fake_score": math.nan, "gan": math.inf, "dm": 0.5})
    with ProgressServer(board, "127.0.0.1:0") as server:
        progress = asyncio.run(ask(f"127.0.0.1:{server.port}"))
    assert progress is not None
    assert (progress.step, progress.images_per_second, progress.losses["dm"]) == (3, None, 0.5)
    assert math.isnan(progress.losses["fake_score"])
    assert math.isinf(progress.losses["gan"])
    status = RunStatus(losses=progress.losses, start_time=datetime(2026, 1, 1, tzinfo=UTC))
    written = status.to_resource()
    json.dumps(written, allow_nan=False)
    assert written["losses"] == {"fake_score": None, "gan": None, "dm": 0.5}
    read = RunStatus.model_validate(written)
    assert math.isnan(read.losses["fake_score"])
    assert read.to_resource() == written, "what did not change is not written again"
