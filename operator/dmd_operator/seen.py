"""A cache of all runs as last seen: it may be behind, and lose anything at any time."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.allowance import Allowance
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.pace import moving


@dataclass(frozen=True)
class Key:
    """A resource's namespace and name."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Unwritten:
    """Moving figures of an attempt that were not worth a write by themselves.

    Attributes:
        stage: the attempt's.
        attempt: its number.
        figures: fields of the status.
    """

    stage: Stage
    attempt: int
    figures: Mapping[str, Any]

    @classmethod
    def of(cls, status: RunStatus) -> Self:
        """The figures of a status that is not written."""
        return cls(status.stage, status.attempt, moving(status))

    def on(self, status: RunStatus) -> RunStatus:
        """A status that was read, with these figures if they are still its attempt's."""
        same = (status.stage, status.attempt) == (self.stage, self.attempt) and status.last_progress_time is not None
        return status.model_copy(update=dict(self.figures)) if same else status


@dataclass
class SeenRun:
    """A run as last seen.

    Attributes:
        resource: None while only children were seen.
        jobs: by their names.
        pods: by their names, each with its owner's uid.
        gone: Jobs that had completed when they were deleted, by their names: what is done stays done.
        results: the last pod that had a result of each owner, by its uid, which outlives it.
        read_at: when all of it was last read from the API server at once.
        moved_at: when its step was last seen to move.
        unwritten: the moving figures that are newer than the written status, None where none are.
        written_at: when the status was last written.
        clock: `Clock.set_so_far` by which the times of the status are; None before the first look.
        neglected_since: when another installation's run was first seen to need something, by `time.monotonic`.
        left_to: the other installation, once it was said that the run is left to it.
        allowances: of its events, by their reasons.
    """

    resource: dict[str, Any] | None = None
    jobs: dict[str, ObservedJob] = field(default_factory=dict)
    pods: dict[str, tuple[str, ObservedPod]] = field(default_factory=dict)
    gone: dict[str, ObservedJob] = field(default_factory=dict)
    results: dict[str, ObservedPod] = field(default_factory=dict)
    read_at: datetime | None = None
    moved_at: datetime | None = None
    unwritten: Unwritten | None = None
    written_at: datetime | None = None
    clock: timedelta | None = None
    neglected_since: float | None = None
    left_to: str | None = None
    allowances: defaultdict[str, Allowance] = field(default_factory=lambda: defaultdict(Allowance))

    def saw(self, resource: Mapping[str, Any]) -> bool:
        """Remembers the resource, unless it is known as it is, or newer; returns whether it was remembered.

        So the operator's own writes, which it knows, do not wake it.
        """
        known = self.resource
        if known is not None and self.owns(resource["metadata"]["uid"]) and _version(resource) <= _version(known):
            return False
        if not self.owns(resource["metadata"]["uid"]):  # another one of the same name
            self.jobs, self.pods, self.gone, self.results, self.read_at, self.unwritten = {}, {}, {}, {}, None, None
        self.resource = dict(resource)
        return True

    def saw_pod(self, owner: str, pod: ObservedPod) -> None:
        """Remembers a pod by the uid of its owner."""
        self.pods[pod.name] = (owner, pod)
        if pod.index == 0 and pod.result is not None:
            self.results[owner] = pod

    def saw_deleted(self, job: ObservedJob) -> None:
        """Forgets a Job that is gone, unless it had completed."""
        self.jobs.pop(job.name, None)
        if job.complete:
            self.gone[job.name] = job
        else:
            self.results.pop(job.uid, None)

    def children(self) -> tuple[list[ObservedJob], list[tuple[str, ObservedPod]]]:
        """The Jobs and pods, each with its owner's uid; with what is gone and must not be forgotten."""
        jobs = list({**self.gone, **self.jobs}.values())
        complete = {job.uid for job in jobs if job.complete}
        there = {owner for owner, pod in self.pods.values() if pod.index == 0}
        kept = [(owner, pod) for owner, pod in self.results.items() if owner in complete - there]
        return jobs, [*self.pods.values(), *kept]

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

    def known(self, key: Key) -> SeenRun | None:
        """The run, where its resource was seen: a label that names none is no reason to remember anything."""
        run = self._runs.get(key)
        return run if run is not None and run.resource is not None else None

    def in_namespace(self, namespace: str) -> list[Key]:
        """The runs of a namespace."""
        return [key for key in self._runs if key.namespace == namespace]

    def forget(self, key: Key) -> None:
        """Forgets a resource that is gone."""
        self._runs.pop(key, None)

    def resources(self) -> Iterator[dict[str, Any]]:
        """Every known resource."""
        return (run.resource for run in list(self._runs.values()) if run.resource is not None)


def _version(resource: Mapping[str, Any]) -> int:
    """Resource versions are numbers in practice and, from Kubernetes 1.35 on, by promise."""
    return int(resource["metadata"]["resourceVersion"])
