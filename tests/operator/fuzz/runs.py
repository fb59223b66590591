"""The runs of a namespace, through the official client."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kubernetes import client

from dmd_api.labels import DISTILLATION
from dmd_api.manifest import API_VERSION
from tests.operator.live import eventually

NAMESPACE = "fuzz"
DEADLINE = 300.0
GROUP, VERSION = API_VERSION.split("/")
WHERE = (GROUP, VERSION, NAMESPACE, "dmddistillations")
CONFLICT = 409
REFUSED = {400, 413, 422, 500}
"""A 500 is what the API server itself says of JSON that is nested too deeply for it."""


class Runs:
    """The runs of the namespace, through the official client, several at a time."""

    def __init__(self, connection: client.ApiClient) -> None:
        self._api = client.CustomObjectsApi(connection)
        self._batch = client.BatchV1Api(connection)
        self._pool = ThreadPoolExecutor(8)

    def create(self, manifests: dict[str, dict[str, Any]], validation: str = "Strict") -> dict[str, str]:
        """Creates them; what the API server said of those that it refused."""

        def create(name: str) -> None:
            body = {**manifests[name], "metadata": {"name": name, "namespace": NAMESPACE}}
            self._api.create_namespaced_custom_object(*WHERE, body, field_validation=validation)

        return self.each(create, manifests)

    def each(self, act: Callable[[str], Any], names: Iterable[str]) -> dict[str, str]:
        """Acts on each of them; what the API server said where it refused."""

        def one(name: str) -> tuple[str, str]:
            try:
                act(name)
            except client.ApiException as error:
                if error.status not in REFUSED:
                    raise
                return name, json.loads(error.body)["message"]
            return name, ""

        return {name: message for name, message in self._pool.map(one, names) if message}

    def all(self) -> dict[str, dict[str, Any]]:
        """All runs by name."""
        found = self._api.list_namespaced_custom_object(*WHERE)["items"]
        return {run["metadata"]["name"]: run for run in found}

    def suspend(self, names: Iterable[str], suspended: bool) -> None:
        """Suspends or resumes them, which nobody may refuse."""
        patch = {"spec": {"suspend": suspended}}
        assert not self.each(lambda name: self._api.patch_namespaced_custom_object(*WHERE, name, patch), names)

    def write_status(self, statuses: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Writes statuses as anybody with the right may; what the API server said of those that it refused."""

        def write(name: str) -> None:
            while True:
                run = self._api.get_namespaced_custom_object(*WHERE, name)
                body = {**run, "status": statuses[name]}
                try:
                    self._api.replace_namespaced_custom_object_status(*WHERE, name, body)
                except client.ApiException as error:
                    if error.status != CONFLICT:  # the operator wrote meanwhile
                        raise
                else:
                    return

        return self.each(write, statuses)

    def delete(self) -> None:
        """Deletes all runs, and returns when nothing is left."""
        self._api.delete_collection_namespaced_custom_object(*WHERE)
        eventually(lambda: not self.all(), "all runs are deleted", DEADLINE)
        eventually(lambda: not self.working(), "their Jobs are gone", DEADLINE)

    def working(self) -> set[str]:
        """The runs that have a Job which is not being deleted."""
        jobs = self._batch.list_namespaced_job(NAMESPACE, label_selector=DISTILLATION).items
        return {job.metadata.labels[DISTILLATION] for job in jobs if job.metadata.deletion_timestamp is None}
