"""The API server and the pods, as far as the operator speaks to them."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio.client import (
    ApiClient,
    ApiException,
    BatchV1Api,
    CoreV1Api,
    CustomObjectsApi,
    EventsV1Api,
)
from pydantic import ValidationError

from dmd_api.manifest import API_VERSION, KIND
from dmd_api.runtime import Progress
from dmd_operator.observe import observe_job, observe_pod
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.pods import DISTILLATION
from dmd_operator.run import Event
from dmd_operator.seen import Key

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "dmddistillations"
FIELD_MANAGER = "dmd-operator"
_EVENT_BYTES = 1024
"""What the API server takes as an event's message."""


class RefusedError(Exception):
    """The API server understood and would not: trying the same again at once is of no use."""


class Cluster:
    """What the operator reads and writes.

    Args:
        api: the client.
        http: asks pods for their progress.
        progress_timeout: in seconds.
    """

    def __init__(self, api: ApiClient, http: aiohttp.ClientSession, progress_timeout: float) -> None:
        self._http, self._progress_timeout = http, progress_timeout
        # The client's annotations know its own models only; it takes plain objects as well.
        self._api: Any = api
        self._custom: Any = CustomObjectsApi(api)
        self._batch: Any = BatchV1Api(api)
        self._core: Any = CoreV1Api(api)
        self._events: Any = EventsV1Api(api)

    async def resource(self, key: Key) -> dict[str, Any] | None:
        """The resource as it is now, None if there is none."""
        try:
            found: dict[str, Any] = await self._custom.get_namespaced_custom_object(
                GROUP, VERSION, key.namespace, PLURAL, key.name
            )
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return found

    async def children(self, resource: Mapping[str, Any]) -> tuple[list[ObservedJob], list[tuple[str, ObservedPod]]]:
        """The resource's Jobs and its pods, each with its Job's name, as they are now."""
        metadata = resource["metadata"]
        namespace, selector = metadata["namespace"], f"{DISTILLATION}={metadata['name']}"
        jobs, pods = await asyncio.gather(
            self._batch.list_namespaced_job(namespace, label_selector=selector),
            self._core.list_namespaced_pod(namespace, label_selector=selector),
        )
        plain = self._api.sanitize_for_serialization
        own = [job for job in map(plain, jobs.items) if owner_uid(job) == metadata["uid"]]
        names = {job["metadata"]["uid"]: job["metadata"]["name"] for job in own}
        return (
            [observe_job(job) for job in own],
            [(names[uid], observe_pod(pod)) for pod in map(plain, pods.items) if (uid := owner_uid(pod)) in names],
        )

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the status; the resource as written.

        Raises:
            ApiException: 409 if the resource is not any more what `resource` says.
        """
        body = {**resource, "status": status}
        written: dict[str, Any] = await self._custom.replace_namespaced_custom_object_status(
            GROUP,
            VERSION,
            resource["metadata"]["namespace"],
            PLURAL,
            resource["metadata"]["name"],
            body,
            field_manager=FIELD_MANAGER,
        )
        return written

    async def create(self, child: Mapping[str, Any]) -> None:
        """Creates a Job or a Service; one that is there already and has the same owner will do.

        Raises:
            RefusedError: the API server will not have it, and says why.
        """
        namespace, name = child["metadata"]["namespace"], child["metadata"]["name"]
        options = {"field_manager": FIELD_MANAGER, "field_validation": "Strict"}
        is_job = child["kind"] == "Job"
        create = self._batch.create_namespaced_job if is_job else self._core.create_namespaced_service
        read = self._batch.read_namespaced_job if is_job else self._core.read_namespaced_service
        try:
            await create(namespace, child, **options)
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                there = self._api.sanitize_for_serialization(await read(name, namespace))
                if owner_uid(there) == owner_uid(child):
                    return
                raise RefusedError(
                    f"{child['kind']} {name} is there and belongs to something else: delete it"
                ) from error
            if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}:
                raise RefusedError(message_of(error)) from error
            raise

    async def delete_attempt(self, namespace: str, name: str) -> None:
        """Deletes an attempt's Job and Service; the Job stays until its pods are gone, so that they are seen."""
        for delete, policy in (
            (self._batch.delete_namespaced_job, "Foreground"),
            (self._core.delete_namespaced_service, "Background"),
        ):
            try:
                await delete(name, namespace, propagation_policy=policy)
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise

    async def delete_resource(self, resource: Mapping[str, Any]) -> None:
        """Deletes the resource as `resource` says it is, its children with it."""
        metadata = resource["metadata"]
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        await self._custom.delete_namespaced_custom_object(
            GROUP,
            VERSION,
            metadata["namespace"],
            PLURAL,
            metadata["name"],
            body={"preconditions": preconditions, "propagationPolicy": "Background"},
        )

    async def tell(self, resource: Mapping[str, Any], event: Event) -> None:
        """Writes an event that `kubectl describe` shows."""
        metadata = resource["metadata"]
        regarding = {"apiVersion": API_VERSION, "kind": KIND}
        regarding |= {field: metadata[field] for field in ("name", "namespace", "uid", "resourceVersion")}
        await self._events.create_namespaced_event(
            metadata["namespace"],
            {
                "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
                "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
                "type": "Warning" if event.warning else "Normal",
                "reason": event.reason,
                "action": event.reason,
                "note": event.message.encode()[:_EVENT_BYTES].decode(errors="ignore"),
                "reportingController": "dmd-operator.io/dmd-operator",
                "reportingInstance": FIELD_MANAGER,
                "regarding": regarding,
            },
        )

    async def progress(self, address: str) -> Progress | None:
        """What rank 0 serves at `host:port`; None where it does not answer, in time and in our words."""
        timeout = aiohttp.ClientTimeout(total=self._progress_timeout)
        try:
            async with self._http.get(f"http://{address}/progress", timeout=timeout) as answer:
                return Progress.model_validate_json(await answer.read()) if answer.ok else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None


def owner_uid(child: Mapping[str, Any]) -> str | None:
    """The uid of the controller of `child`."""
    owners = child["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def message_of(error: ApiException) -> str:
    """What the API server says, without the HTTP around it."""
    body = error.body if isinstance(error.body, str) else ""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
