"""What is waited out and what is believed, without a cluster."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
from kubernetes.aio.client import ApiClient, ApiException, Configuration

from dmd_api.errors import BadInputError, DMDError, InfrastructureError
from dmdctl.cluster import following
from dmdctl.cluster.cluster import Cluster
from dmdctl.cluster.following import Objects, Outage, snapshots

AWAY = aiohttp.ClientConnectionError("refused")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "BACK_OFF_SECONDS", (0.0, 0.0))


async def outage(said: list[str]) -> Outage:
    return Outage(Cluster(ApiClient(Configuration(host="https://there")), "default"), said.append)


@pytest.mark.parametrize(
    ("error", "known", "expected"),
    [
        (AWAY, False, InfrastructureError),
        (AWAY, True, None),
        (TimeoutError(), True, None),
        (ApiException(status=HTTPStatus.SERVICE_UNAVAILABLE), True, None),
        (ApiException(status=HTTPStatus.SERVICE_UNAVAILABLE), False, InfrastructureError),
        (ApiException(status=HTTPStatus.GONE), True, None),
        # An API server that starts refuses what it will allow.
        (ApiException(status=HTTPStatus.FORBIDDEN), True, None),
        (ApiException(status=HTTPStatus.NOT_FOUND), True, None),
        (ApiException(status=HTTPStatus.FORBIDDEN), False, BadInputError),
        (ApiException(status=HTTPStatus.NOT_FOUND), False, BadInputError),
        (ApiException(status=HTTPStatus.UNAUTHORIZED), False, BadInputError),
    ],
)
def test_which_errors_end_a_watch(error: Exception, known: bool, expected: type[DMDError] | None) -> None:
    async def meet() -> None:
        waits = await outage([])
        if known:
            waits.over("x")
        await waits.wait("x", error)

    if expected is None:
        asyncio.run(meet())
    else:
        with pytest.raises(expected):
            asyncio.run(meet())


def test_a_refusal_that_lasts_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "REFUSED_SECONDS", -1.0)

    async def meet() -> None:
        waits = await outage([])
        waits.over("x")
        await waits.wait("x", ApiException(status=HTTPStatus.FORBIDDEN))

    with pytest.raises(BadInputError):
        asyncio.run(meet())


def test_several_sources_lose_the_server_once() -> None:
    said: list[str] = []

    async def meet() -> None:
        waits = await outage(said)
        for source in "xy":
            waits.over(source)
        for source in "xyxy":
            await waits.wait(source, AWAY)
        waits.over("x")
        assert len(said) == 1
        waits.over("y")
        waits.over("y")

    asyncio.run(meet())
    assert len(said) == 2
    assert "does not answer" in said[0]
    assert "answers again" in said[1]


class Watch:
    """A watch with one change before the server forgets the version that it was asked to begin from."""

    def __init__(self, kind: str) -> None:
        self._changes = [{"type": "ADDED", "raw_object": item("b")}, {"type": "DELETED", "raw_object": item("a")}]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def stream(self, *where: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        for change in self._changes:
            yield change
        raise ApiException(status=HTTPStatus.GONE, reason="Expired: too old resource version")


class Lister:
    """What the client's bound methods look like."""

    api_client = SimpleNamespace(sanitize_for_serialization=lambda content: content)

    async def list(self, **options: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": [item("a")]}


def item(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def test_a_version_that_is_too_old_is_listed_anew_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "Watch", Watch)
    said: list[str] = []

    async def names() -> list[list[str]]:
        seen: list[Objects] = []
        async for objects in snapshots(await outage(said), "x", Lister().list):
            seen.append(objects)
            if len(seen) == 5:
                break
        return [sorted(objects) for objects in seen]

    assert asyncio.run(names()) == [["a"], ["a", "b"], ["b"], ["a"], ["a", "b"]]
    assert said == []
