"""A cache of all runs as last seen: it may be behind, and lose anything at any time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dmd_operator.observed import ObservedJob, ObservedPod


@dataclass(frozen=True)
class Key:
    """A resource's namespace and name."""

    namespace: str
    name: str


@dataclass
class SeenRun:
    """A run as last seen.

    Attributes:
        resource: None while only children were seen.
        jobs: by their names.
        pods: by their names, each with its Job's name.
        read_at: when all of it was last read from the API server at once.
    """

    resource: dict[str, Any] | None = None
    jobs: dict[str, ObservedJob] = field(default_factory=dict)
    pods: dict[str, tuple[str, ObservedPod]] = field(default_factory=dict)
    read_at: datetime | None = None

    def saw(self, resource: Mapping[str, Any]) -> bool:
        """Remembers the resource, unless it is known as it is, or newer; returns whether it was remembered.

        So the operator's own writes, which it knows, do not wake it.
        """
        known = self.resource
        if known is not None and self.owns(resource["metadata"]["uid"]) and _version(resource) <= _version(known):
            return False
        if not self.owns(resource["metadata"]["uid"]):  # another one of the same name
            self.jobs, self.pods, self.read_at = {}, {}, None
        self.resource = dict(resource)
        return True

    def owns(self, uid: str | None) -> bool:
        """Returns whether this is the resource's uid."""
        return self.resource is not None and self.resource["metadata"]["uid"] == uid


class Seen:
    """All runs by their keys."""

    def __init__(self) -> None:
        self._runs: dict[Key, SeenRun] = {}

    def run(self, key: Key) -> SeenRun:
        """The run, which is empty where nothing was seen of it."""
        return self._runs.setdefault(key, SeenRun())

    def forget(self, key: Key) -> None:
        """Forgets a resource that is gone."""
        self._runs.pop(key, None)

    def resources(self) -> Iterator[dict[str, Any]]:
        """Every known resource."""
        return (run.resource for run in list(self._runs.values()) if run.resource is not None)


def _version(resource: Mapping[str, Any]) -> int:
    """Resource versions are numbers in practice and, from Kubernetes 1.35 on, by promise."""
    return int(resource["metadata"]["resourceVersion"])
