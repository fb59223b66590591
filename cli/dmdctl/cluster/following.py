"""Follows an API server's objects as they change; its restarts are waited out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiException
from kubernetes.aio.watch import Watch

from dmdctl.cluster.cluster import REQUEST_SECONDS, UNREACHABLE, Cluster

Objects = dict[str, dict[str, Any]]
"""Objects by their names."""

WATCH_SECONDS = 240
"""Below the client's own limit on a request, and what a connection that died unnoticed may cost."""
BACK_OFF_SECONDS = (0.5, 10.0)
REFUSED_SECONDS = 30.0
"""An API server that starts refuses what it will allow and knows no CRD: this long it is not believed."""
REFUSALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
_ALWAYS_BELIEVED = {HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.UNPROCESSABLE_ENTITY}


class Outage:
    """Waits out an API server's absence, and says once that it is gone and once that it is back.

    Args:
        cluster: whose.
        say: tells the user.
    """

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self._cluster, self._say = cluster, say
        self._known: set[str] = set()
        self._lost: dict[str, tuple[float, float]] = {}  # since when, and the next wait
        self._told = False

    def over(self, source: str) -> None:
        """`source` was answered."""
        self._known.add(source)
        self._lost.pop(source, None)
        if self._told and not self._lost:
            self._told = False
            self._say("the API server answers again")

    async def wait(self, source: str, error: Exception) -> None:
        """`source` was not answered: returns when it is time to ask again.

        Raises:
            DMDError: it never was, or is refused for good.
        """
        status = error.status if isinstance(error, ApiException) else None
        since, pause = self._lost.get(source, (time.monotonic(), BACK_OFF_SECONDS[0]))
        refused_long = status in REFUSALS and time.monotonic() - since > REFUSED_SECONDS
        if source not in self._known or refused_long or status in _ALWAYS_BELIEVED:
            raise self._cluster.in_words(error) from error
        self._lost[source] = (since, min(2 * pause, BACK_OFF_SECONDS[1]))
        if not self._told and status != HTTPStatus.GONE:
            self._told = True
            self._say("the API server does not answer; waiting for it (the run does not depend on that)")
        if status == HTTPStatus.UNAUTHORIZED:
            await self._cluster.sign_in_again()
        await asyncio.sleep(pause)


async def snapshots(
    outage: Outage, source: str, lister: Callable[..., Any], *where: str, **selectors: str
) -> AsyncIterator[Objects]:
    """All that matches, now and again after each change; never ends by itself.

    Args:
        outage: waits where nobody answers.
        source: what is listed, in a word.
        lister: a bound method of the client that lists.
        where: its arguments.
        selectors: its field_selector or label_selector.

    Raises:
        DMDError: the first list, or for long every list, was refused or not answered.
    """
    plain = lister.__self__.api_client.sanitize_for_serialization  # type: ignore[attr-defined]
    while True:
        try:
            listed = plain(await lister(*where, **selectors, _request_timeout=REQUEST_SECONDS))
            outage.over(source)
            objects = {item["metadata"]["name"]: item for item in listed["items"]}
            yield dict(objects)
            async with Watch("object") as watch:  # type: ignore[no-untyped-call]
                changes = watch.stream(
                    lister,
                    *where,
                    **selectors,
                    resource_version=listed["metadata"]["resourceVersion"],
                    timeout_seconds=WATCH_SECONDS,
                )
                async for change in changes:
                    item = change["raw_object"]
                    if change["type"] == "DELETED":
                        objects.pop(item["metadata"]["name"], None)
                    elif change["type"] != "BOOKMARK":
                        objects[item["metadata"]["name"]] = item
                    yield dict(objects)
            await asyncio.sleep(BACK_OFF_SECONDS[0])  # a server that ends each watch at once is not asked in a loop
        except (ApiException, *UNREACHABLE) as error:
            await outage.wait(source, error)
