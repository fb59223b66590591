"""Kubernetes objects as plain dictionaries, through the official client.

Its authentication, retries and errors are used. Its own methods would hold every object against the models of its
release: a field of a newer Kubernetes, or a user's mistake, would end in the client's words, not the API server's.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiClient

from dmd_operator.reading import parse

PAGE_ITEMS = 100
PAGE_BYTES = 4 * 1024 * 1024
"""The part of a list that is read at once: one object can have 1.5 MB, and a tenant can make as many as they like."""
TRIES_WHEN_BUSY, LONGEST_WAIT_WHEN_BUSY = 10, 30.0
"""As many as Go's clients make; and seconds between two of them."""
_WARNING = re.compile(r'299 \S+ "(?P<text>.*)"')
"""A warning's header (RFC 7234, section 5.5), as the API server writes them."""

PLURALS = {"Job": "jobs", "Service": "services", "NetworkPolicy": "networkpolicies"}
"""The kinds that are created for a run."""
_ROOTS = {
    "dmddistillations": "/apis/dmd-operator.io/v1alpha1",
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "events": "/apis/events.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


class Objects:
    """Requests to the API server.

    Args:
        api: the client.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api: Any = api

    async def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        """An object; errors as `request`."""
        return await self.request("GET", f"{path(plural, namespace)}/{name}")

    async def pages(
        self, plural: str, namespace: str | None, items: int = PAGE_ITEMS, **query: str
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Objects, of all namespaces for None, at most so many at once; errors as `request`."""
        most, token = items, ""
        while True:
            asked = {**query, "limit": items, **({"continue": token} if token else {})}
            answer = await self._send("GET", path(plural, namespace), asked)
            body = await _read(answer, PAGE_BYTES if items > 1 else None)
            if body is None:
                items = max(1, items // 8)
                continue
            page = parse(body)
            yield page["items"]
            token, items = page["metadata"].get("continue"), min(2 * items, most)
            if not token:
                return

    async def create(self, plural: str, namespace: str, body: Mapping[str, Any], **query: str) -> tuple[str, ...]:
        """Creates an object and returns what the API server warns of; errors as `request`."""
        answer = await self._send("POST", path(plural, namespace), query, body)
        await answer.read()
        found = (_WARNING.match(header) for header in answer.headers.getall("Warning", ()))
        return tuple(match["text"] for match in found if match is not None)

    async def replace_status(
        self, plural: str, namespace: str, name: str, body: Mapping[str, Any], **query: str
    ) -> dict[str, Any]:
        """Writes an object's status; errors as `request`, 409 where `body` is of an older version."""
        return await self.request("PUT", f"{path(plural, namespace)}/{name}/status", query, body)

    async def delete(self, plural: str, namespace: str, name: str, options: Mapping[str, Any]) -> None:
        """Deletes an object; errors as `request`."""
        await self.request("DELETE", f"{path(plural, namespace)}/{name}", body=options)

    async def request(
        self,
        method: str,
        resource_path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """An answer's JSON.

        Raises:
            ApiException: the API server did not do it; its `body` says why.
        """
        answer = await self._send(method, resource_path, query, body)
        parsed: dict[str, Any] = parse(await answer.read())
        return parsed

    async def _send(
        self,
        method: str,
        resource_path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The client's answer, of which only the head was read; it has to be read or closed.

        A request that the API server is too busy for is made again when it says so: a look at a run is several of
        them, and would rarely come to its end where a third of all requests are turned away.
        """
        request = await self._api.param_serialize(
            method=method,
            resource_path=resource_path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        for _ in range(TRIES_WHEN_BUSY):
            answer = await self._api.call_api(*request)
            if answer.status != HTTPStatus.TOO_MANY_REQUESTS or (wait := _retry_after(answer)) is None:
                break
            await answer.read()
            await asyncio.sleep(wait)
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            await answer.read()
            self._api.response_deserialize(answer, {"default": "str"})  # raises
        return answer


def _retry_after(answer: Any) -> float | None:
    """The seconds after which to ask again, where the API server says so."""
    said = answer.headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_WHEN_BUSY) if said.isdecimal() else None


async def _read(answer: Any, most: int | None) -> bytes | None:
    """The answer's body; None where it has more than `most` bytes."""
    body = bytearray()
    async with answer.response:
        async for chunk in answer.response.content.iter_any():
            body += chunk
            if most is not None and len(body) > most:
                answer.response.close()
                return None
    return bytes(body)


def path(plural: str, namespace: str | None) -> str:
    """The path of a kind's objects."""
    return f"{_ROOTS[plural]}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"
