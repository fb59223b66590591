"""Kubernetes objects as plain dictionaries, through the official client.

Its authentication, retries and errors are used. Its own methods would hold every object against the models of its
release: a field of a newer Kubernetes, or a user's mistake, would end in the client's words, not the API server's.
"""

import re
from collections.abc import Mapping
from typing import Any

from kubernetes.aio.client import ApiClient
from multidict import CIMultiDictProxy

_WARNING = re.compile(r'299 \S+ "(?P<text>.*)"')
"""A warning's header (RFC 7234, section 5.5), as the API server writes them."""

_ROOTS = {
    "dmddistillations": "/apis/dmd-operator.io/v1alpha1",
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "events": "/apis/events.k8s.io/v1",
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

    async def list(self, plural: str, namespace: str | None, **query: str | int) -> list[dict[str, Any]]:
        """Objects, of all namespaces for None; errors as `request`."""
        found: list[dict[str, Any]] = (await self.request("GET", path(plural, namespace), query))["items"]
        return found

    async def create(self, plural: str, namespace: str, body: Mapping[str, Any], **query: str) -> tuple[str, ...]:
        """Creates an object and returns what the API server warns of; errors as `request`."""
        headers, _ = await self._answer("POST", path(plural, namespace), query, body)
        found = (_WARNING.match(header) for header in headers.getall("Warning", ()))
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
        _, parsed = await self._answer(method, resource_path, query, body)
        return parsed

    async def _answer(
        self,
        method: str,
        resource_path: str,
        query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
    ) -> tuple[CIMultiDictProxy[str], dict[str, Any]]:
        request = await self._api.param_serialize(
            method=method,
            resource_path=resource_path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.call_api(*request)
        await answer.read()
        return answer.headers, self._api.response_deserialize(answer, {"default": "object"}).data


def path(plural: str, namespace: str | None) -> str:
    """The path of a kind's objects."""
    return f"{_ROOTS[plural]}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"
