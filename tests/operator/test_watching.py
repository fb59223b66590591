"""Watchers that outlive each other, namespaces that cannot be read, and large objects."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import kopf
import pytest
from kubernetes.aio.client import ApiClient, ApiException
from prometheus_client import CollectorRegistry

from dmd_operator import watching
from dmd_operator.objects import PAGE_BYTES, Objects
from dmd_operator.server import serve
from dmd_operator.watching import Watching

pytestmark = pytest.mark.timeout(60)


class Cluster(Objects):
    """An API server of which some namespaces cannot be read."""

    def __init__(self) -> None:
        self.gone: set[str | None] = set()

    async def pages(self, plural: str, namespace: str | None, items: int = 1, **_: str) -> AsyncIterator[Any]:
        if namespace in self.gone:
            raise ApiException(status=403, reason=f"{namespace} is forbidden")
        yield []


class Kopf:
    """Stands for `kopf.operator`: a watcher that ends when it is told to.

    Attributes:
        watched: the namespaces of each start.
    """

    def __init__(self) -> None:
        self.watched: list[tuple[str, ...]] = []
        self.end = asyncio.Event()

    async def operator(self, *, namespaces: tuple[str, ...], stop_flag: asyncio.Event, **_: Any) -> None:
        self.watched.append(namespaces)
        watcher = asyncio.create_task(self.end.wait(), name="watcher for things@None")
        try:
            await stop_flag.wait()
        finally:
            watcher.cancel()
            self.end.clear()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in ("LOOK_AGAIN_SECONDS", "FIRST_LOOK_AGAIN_SECONDS", "FIRST_BACK_OFF"):
        monkeypatch.setattr(watching, seconds, 0.01)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_watcher_that_ended_is_started_again_and_healthz_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        played, stop, unhealthy = Kopf(), asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(kopf, "operator", played.operator)
        one = Watching(Cluster(), (), lambda _: None)

        async def see() -> None:
            await until(lambda: not one.healthy)
            unhealthy.set()

        monkeypatch.setattr(watching, "FIRST_BACK_OFF", 0.2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.run(kopf.OperatorRegistry(), stop))
            tasks.create_task(see())
            await until(lambda: len(played.watched) == 1)
            played.end.set()
            await until(lambda: len(played.watched) == 2)
            assert unhealthy.is_set()
            assert one.healthy
            stop.set()

    asyncio.run(run())


def test_a_namespace_that_cannot_be_read_keeps_no_other_from_being_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        played, stop, cluster, lost = Kopf(), asyncio.Event(), Cluster(), list[str]()
        monkeypatch.setattr(kopf, "operator", played.operator)
        cluster.gone = {"left"}
        one = Watching(cluster, ("left", "team"), lost.append)
        await one.until_readable(stop)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.run(kopf.OperatorRegistry(), stop))
            await until(lambda: played.watched == [("team",)])
            cluster.gone = set()
            await until(lambda: played.watched[1:] == [("left", "team")])
            cluster.gone = {"team"}
            await until(lambda: played.watched[2:] == [("left",)])
            assert lost == ["team"]
            cluster.gone = {"left", "team"}
            played.end.set()  # as kopf's do where they are refused
            await until(lambda: lost == ["team", "left"])
            stop.set()

    asyncio.run(run())


def test_large_lists_are_read_a_few_objects_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant can make as many objects of 1.5 MB as they like."""
    bodies = [{"x": "y" * (PAGE_BYTES // 2)} for _ in range(5)]
    limits: list[int] = []

    class Content:
        def __init__(self, body: bytes) -> None:
            self.content, self.body = self, body

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: Any) -> None: ...

        def close(self) -> None: ...

        async def iter_any(self) -> AsyncIterator[bytes]:
            yield self.body

    async def send(_: Any, __: str, ___: str, query: dict[str, Any], *____: Any) -> Any:
        start, limit = int(query.get("continue", 0)), query["limit"]
        limits.append(limit)
        token = str(start + limit) if start + limit < len(bodies) else ""
        body = {"metadata": {"continue": token}, "items": bodies[start : start + limit]}
        return type("Answer", (), {"response": Content(json.dumps(body).encode())})

    monkeypatch.setattr(Objects, "_send", send)

    async def read() -> int:
        async with ApiClient() as api:
            return sum([len(page) async for page in Objects(api).pages("jobs", None)])

    assert asyncio.run(read()) == len(bodies)
    assert limits[0] > 1
    assert min(limits) == 1


@pytest.mark.parametrize(("alive", "status"), [(True, 200), (False, 503)])
def test_healthz_says_that_a_watch_has_ended(alive: bool, status: int) -> None:
    async def ask() -> int:
        runner = await serve(0, CollectorRegistry(), lambda: alive, lambda: True)
        port = next(address[1] for address in runner.addresses if len(address) == 2)  # IPv4's
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                return answer.status
        finally:
            await runner.cleanup()

    assert asyncio.run(ask()) == status
