"""Requests to the API server, and to rank 0 of a run."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException
from pydantic import ValidationError

from dmd_api.labels import DISTILLATION
from dmd_api.manifest import API_VERSION, KIND
from dmd_api.runtime import Progress
from dmd_api.text import neutral
from dmd_operator.decision import Event
from dmd_operator.objects import Objects
from dmd_operator.observe import observe_job, observe_pod
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.seen import Key

PLURAL = "dmddistillations"
FIELD_MANAGER = "dmd-operator"
_PROGRESS_BYTES = 65536
_EVENT_BYTES = 1024
"""The longest message of an event that the API server accepts."""


class RefusedError(Exception):
    """The API server understood and refused: trying again at once would not help."""


class Cluster:
    """The cluster as the operator reads and writes it.

    Args:
        api: the client.
        http: asks pods for their progress.
        progress_timeout: in seconds.
    """

    def __init__(self, api: ApiClient, http: aiohttp.ClientSession, progress_timeout: float) -> None:
        self._objects, self._http, self._progress_timeout = Objects(api), http, progress_timeout

    async def resource(self, key: Key) -> dict[str, Any] | None:
        """The resource as it is now, None if there is none."""
        try:
            return await self._objects.get(PLURAL, key.namespace, key.name)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def children(self, resource: Mapping[str, Any]) -> tuple[list[ObservedJob], list[tuple[str, ObservedPod]]]:
        """The resource's Jobs and its pods, each with its Job's name, as they are now."""
        metadata = resource["metadata"]
        namespace, selector = metadata["namespace"], f"{DISTILLATION}={metadata['name']}"
        jobs, pods = await asyncio.gather(
            self._objects.list("jobs", namespace, labelSelector=selector),
            self._objects.list("pods", namespace, labelSelector=selector),
        )
        own = [job for job in jobs if owner_uid(job) == metadata["uid"]]
        names = {job["metadata"]["uid"]: job["metadata"]["name"] for job in own}
        return (
            [observe_job(job) for job in own],
            [(names[uid], observe_pod(pod)) for pod in pods if (uid := owner_uid(pod)) in names],
        )

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the status; the resource as written.

        Raises:
            ApiException: 409 if the resource is not any more what `resource` says.
        """
        metadata = resource["metadata"]
        body = {**resource, "status": status}
        return await self._objects.replace_status(
            PLURAL, metadata["namespace"], metadata["name"], body, fieldManager=FIELD_MANAGER
        )

    async def create(self, child: Mapping[str, Any]) -> None:
        """Creates a Job or a Service; one that exists already and has the same owner is kept.

        Raises:
            RefusedError: the API server will not have it, and says why.
        """
        namespace, name = child["metadata"]["namespace"], child["metadata"]["name"]
        plural = f"{child['kind'].lower()}s"
        try:
            await self._objects.create(plural, namespace, child, fieldManager=FIELD_MANAGER, fieldValidation="Strict")
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                there = await self._objects.get(plural, namespace, name)
                if owner_uid(there) == owner_uid(child):
                    return
                owners = (owner["kind"] for owner in there["metadata"].get("ownerReferences") or [])
                remedy = (
                    "an earlier run of this name and goes with it" if KIND in owners else "something else: delete it"
                )
                raise RefusedError(f"{child['kind']} {name} exists already and belongs to {remedy}") from error
            if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}:
                raise RefusedError(message_of(error)) from error
            raise

    async def delete_attempt(self, namespace: str, name: str, owner: str) -> None:
        """Deletes an attempt's Job and Service; the Job stays until its pods are gone, so that they are seen.

        Args:
            namespace: the namespace of both.
            name: the name of both.
            owner: the uid of the resource that they belong to; others' objects are left alone.
        """
        for plural, policy in (("jobs", "Foreground"), ("services", "Background")):
            try:
                there = await self._objects.get(plural, namespace, name)
                if owner_uid(there) != owner:
                    continue
                preconditions = {"uid": there["metadata"]["uid"]}
                options = {"propagationPolicy": policy, "preconditions": preconditions}
                await self._objects.delete(plural, namespace, name, options)
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise

    async def delete_resource(self, resource: Mapping[str, Any]) -> None:
        """Deletes the resource as `resource` says it is, its children with it."""
        metadata = resource["metadata"]
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        options = {"preconditions": preconditions, "propagationPolicy": "Background"}
        await self._objects.delete(PLURAL, metadata["namespace"], metadata["name"], options)

    async def report(self, resource: Mapping[str, Any], event: Event) -> None:
        """Writes an event that `kubectl describe` shows."""
        metadata = resource["metadata"]
        regarding = {"apiVersion": API_VERSION, "kind": KIND}
        regarding |= {field: metadata[field] for field in ("name", "namespace", "uid", "resourceVersion")}
        await self._objects.create(
            "events",
            metadata["namespace"],
            {
                "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
                "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
                "type": "Warning" if event.warning else "Normal",
                "reason": neutral(event.reason),
                "action": neutral(event.reason),
                "note": neutral(event.message, "\n").encode()[:_EVENT_BYTES].decode(errors="ignore"),
                "reportingController": "dmd-operator.io/dmd-operator",
                "reportingInstance": FIELD_MANAGER,
                "regarding": regarding,
            },
        )

    async def progress(self, address: str) -> Progress | None:
        """The progress that rank 0 serves at `host:port`; None without a valid answer in time."""
        timeout = aiohttp.ClientTimeout(total=self._progress_timeout)
        try:
            # A pod runs whatever its owner wants: it can neither fill the operator's memory nor send it elsewhere.
            async with self._http.get(f"http://{address}/progress", timeout=timeout, allow_redirects=False) as answer:
                if answer.status != HTTPStatus.OK or not 0 < (answer.content_length or 0) <= _PROGRESS_BYTES:
                    return None
                return Progress.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None


def owner_uid(child: Mapping[str, Any]) -> str | None:
    """The uid of the controller of `child`."""
    owners = child["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def message_of(error: ApiException) -> str:
    """The API server's own message, without the HTTP around it."""
    body = error.body if isinstance(error.body, str) else ""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
