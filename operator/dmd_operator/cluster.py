"""Requests to the API server, and to rank 0 of a run."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException

from dmd_api.labels import DISTILLATION
from dmd_api.manifest import API_VERSION, KIND
from dmd_api.runtime import Progress
from dmd_api.text import neutral
from dmd_operator.conditions import shown
from dmd_operator.decision import Event
from dmd_operator.objects import PLURALS, Objects
from dmd_operator.observe import observe_job, observe_pod
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.reading import kept
from dmd_operator.seen import Key

log = logging.getLogger(__name__)

PLURAL = "dmddistillations"
FIELD_MANAGER = "dmd-operator"
_PROGRESS_BYTES = 65536
_MALFORMED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
_REFUSALS = {*_MALFORMED, HTTPStatus.FORBIDDEN}
_PASSING = ("exceeded quota", "does not support dry run", "failed calling webhook")
"""What refusals that have nothing to do with the object say."""
_EVENT_BYTES = 1024
"""The longest message of an event that the API server accepts."""

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The API server did not create an object: for good, or for as long as a webhook, a quota or itself is away.

    Args:
        message: what it said.
        malformed: whether the object itself is wrong.
    """

    def __init__(self, message: str, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


class Cluster:
    """The cluster as the operator reads and writes it.

    Args:
        api: the client.
        http: asks pods for their progress, by `progress_session`.
    """

    def __init__(self, api: ApiClient, http: aiohttp.ClientSession) -> None:
        self._objects, self._http = Objects(api), http

    async def resource(self, key: Key) -> dict[str, Any] | None:
        """The resource as it is now, by `reading.kept`; None if there is none."""
        there = await self._existing(PLURAL, key.namespace, key.name)
        return kept(there) if there is not None else None

    async def children(self, resource: Mapping[str, Any]) -> tuple[list[ObservedJob], list[tuple[str, ObservedPod]]]:
        """The resource's Jobs and their pods, each with its Job's uid, as they are now."""
        uid = resource["metadata"]["uid"]
        met = {
            service["metadata"]["name"]
            async for service in self._labelled("services", resource)
            if owner_uid(service) == uid
        }
        jobs = [
            replace(observed, has_service=observed.name in met)
            async for job in self._labelled("jobs", resource)
            if owner_uid(job) == uid and (observed := observe_job(job)) is not None
        ]
        uids = {job.uid for job in jobs}
        pods = [
            (owner, seen)
            async for pod in self._labelled("pods", resource)
            if (owner := owner_uid(pod)) is not None and owner in uids and (seen := observe_pod(pod)) is not None
        ]
        return jobs, pods

    async def _labelled(self, plural: str, resource: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Whatever has the label of the resource; each page is dropped before the next one is read."""
        metadata = resource["metadata"]
        selector = f"{DISTILLATION}={metadata['name']}"
        async for items in self._objects.pages(plural, metadata["namespace"], labelSelector=selector):
            for item in items:
                yield item

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the status; the resource as written.

        Raises:
            ApiException: 409 if the resource is not any more what `resource` says.
        """
        metadata = resource["metadata"]
        # Of everything but the status the API server keeps what it has: nothing else need be sent.
        body = {field: resource[field] for field in ("apiVersion", "kind", "metadata")} | {"status": status}
        written = await self._objects.replace_status(
            PLURAL, metadata["namespace"], metadata["name"], body, fieldManager=FIELD_MANAGER
        )
        return kept(written)

    async def create(self, child: Mapping[str, Any]) -> None:
        """Creates a child; one that exists already and has the same owner is kept.

        Raises:
            RefusedError: the API server did not create it, and says why.
        """
        namespace, name = child["metadata"]["namespace"], child["metadata"]["name"]
        plural = PLURALS[child["kind"]]
        try:
            await self._objects.create(plural, namespace, child, fieldManager=FIELD_MANAGER, fieldValidation="Strict")
        except ApiException as error:
            # A conflict may also be a quota's that was written to at the same time.
            there = await self._existing(plural, namespace, name) if error.status == HTTPStatus.CONFLICT else None
            if there is None:
                raise RefusedError(message_of(error), error.status in _MALFORMED) from error
            if owner_uid(there) != owner_uid(child):
                owners = (owner["kind"] for owner in there["metadata"].get("ownerReferences") or [])
                whose = (
                    "an earlier run of this name and goes with it" if KIND in owners else "something else: delete it"
                )
                raise RefusedError(f"{child['kind']} {name} exists already and belongs to {whose}") from error

    async def rehearse(self, child: Mapping[str, Any]) -> tuple[str, ...]:
        """Asks whether a Job or a Service would be created, and returns what the API server warns of.

        Quotas, webhooks without dry runs and an API server that is busy say nothing of the object: they are no answer.

        Raises:
            RefusedError: the object breaks the API's schema or a policy, and will whenever it is created.
        """
        plural, query = f"{child['kind'].lower()}s", {"fieldValidation": "Strict", "dryRun": "All"}
        namespace = child["metadata"]["namespace"]
        try:
            return await self._objects.create(plural, namespace, child, fieldManager=FIELD_MANAGER, **query)
        except ApiException as error:
            message = message_of(error)
            if error.status in _REFUSALS and not any(passing in message for passing in _PASSING):
                raise RefusedError(message, error.status in _MALFORMED) from error
            log.info("%s/%s could not be rehearsed: %s", namespace, child["metadata"]["name"], message)
            return ()

    async def _existing(self, plural: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return await self._objects.get(plural, namespace, name)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def delete_attempt(self, namespace: str, name: str, owner: str) -> None:
        """Deletes an attempt's Job and Service; the Job stays until its pods are gone, so that they are seen.

        Args:
            namespace: the namespace of both.
            name: the name of both.
            owner: the uid of the resource that they belong to; others' objects are left alone.
        """
        await self._delete("jobs", namespace, name, owner, "Foreground")
        await self.delete_service(namespace, name, owner)

    async def delete_service(self, namespace: str, name: str, owner: str) -> None:
        """Deletes an attempt's Service; as `delete_attempt`."""
        await self._delete("services", namespace, name, owner, "Background")

    async def _delete(self, plural: str, namespace: str, name: str, owner: str, policy: str) -> None:
        try:
            there = await self._objects.get(plural, namespace, name)
            if owner_uid(there) == owner:
                options = {"propagationPolicy": policy, "preconditions": {"uid": there["metadata"]["uid"]}}
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
                "note": shown(event.message).encode()[:_EVENT_BYTES].decode(errors="ignore"),
                "reportingController": "dmd-operator.io/dmd-operator",
                "reportingInstance": FIELD_MANAGER,
                "regarding": regarding,
            },
        )

    async def progress(self, address: str) -> Progress | None:
        """The progress that rank 0 serves at `host:port`; None without a valid answer in time.

        A pod answers whatever its owner wants: it can neither fill the operator's memory nor send it elsewhere, and no
        answer keeps the run's deadline from being looked at.
        """
        body = bytearray()
        try:
            async with self._http.get(f"http://{address}/progress", allow_redirects=False) as answer:
                plain = answer.headers.get("Content-Encoding", "identity") == "identity"
                if answer.status != HTTPStatus.OK or not plain:
                    return None
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _PROGRESS_BYTES:
                        answer.close()
                        return None
            return Progress.from_answer(bytes(body))
        except Exception as error:  # aiohttp's parser raises errors of no common class
            log.debug("%s: no progress: %s: %s", address, type(error).__name__, error)
            return None


def progress_session(timeout: float) -> aiohttp.ClientSession:
    """The connections to pods: one for each run that is asked, so that none waits for another's.

    Args:
        timeout: for the whole of an answer, in seconds.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,  # of a pod that compresses all the same
    )


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
