"""One look at one run: observes, decides, applies."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiException

from dmd_api.apps import PROGRESS_PORT
from dmd_api.errors import BadInputError
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage, stages
from dmd_operator.allowance import Allowance
from dmd_operator.attempts import refused
from dmd_operator.clock import Clock, moved
from dmd_operator.cluster import Cluster, RefusedError, message_of
from dmd_operator.decide import decide, unusable
from dmd_operator.decision import Decision, Event
from dmd_operator.isolation import network_policy
from dmd_operator.manifests import read_manifest
from dmd_operator.metrics import DECISION_SECONDS, LOOKS
from dmd_operator.observe import with_pods
from dmd_operator.observed import ObservedJob, ObservedPod
from dmd_operator.ownership import Ownership
from dmd_operator.pace import only_moved, paced
from dmd_operator.pods import Owner, attempt_objects, pod_fields
from dmd_operator.queue import Gone
from dmd_operator.reading import REFUSED
from dmd_operator.run import Run, Settings
from dmd_operator.seen import Key, Seen, SeenRun, Unwritten
from dmd_operator.settings import OperatorSettings
from dmd_operator.stored_status import completed, read_status

log = logging.getLogger(__name__)

READ_ALL_EVERY, READ_MOVING_EVERY = timedelta(minutes=3), timedelta(minutes=10)
"""Watches may lose an event, and nobody watches Services: this often everything of a run is read again.

One whose step moves needs neither; one that answers and whose step stands still may wait for its Service.
"""
READS_AT_ONCE, SECONDS_A_READ = 20, 0.1
"""Runs that are read without anything to be done about them, as all are after a start: some, then one after another."""
READ_LATER = timedelta(seconds=2)
_FIRST = (Stage.PREFLIGHT, 1)
"""The attempt that a run begins with."""
_AT_ONCE = timedelta(milliseconds=100)


class UnreadableError(Exception):
    """A resource's status cannot be read, and must not be replaced by another one."""


@dataclass(frozen=True)
class _View:
    """A resource with its children, as a decision is made from them."""

    resource: dict[str, Any]
    jobs: Iterable[ObservedJob]
    pods: Iterable[tuple[str, ObservedPod]]


class Reconciler:
    """Looks at runs.

    Args:
        cluster: the cluster of the runs.
        seen: what the watches saw.
        settings: the operator's.
        clock: the time.
    """

    def __init__(self, cluster: Cluster, seen: Seen, settings: OperatorSettings, clock: Clock | None = None) -> None:
        self._cluster, self._seen, self._settings, self._clock = cluster, seen, settings, clock or Clock()
        self._ownership = Ownership(settings.installation, settings.take_over_seconds)
        self._answering: set[Key] = set()
        """The runs whose rank 0 answered when it was asked last."""
        self._reads = Allowance(READS_AT_ONCE, SECONDS_A_READ)

    async def look(self, key: Key, since: float) -> timedelta | None:
        """Does what is to be done about `key` now, and returns when to look again.

        What was seen decides whether there is anything to do. Before it is done, the decision is made once more from
        what the API server itself says: so no cache that lags behind ever starts or ends an attempt.

        Args:
            key: the resource.
            since: the time of the event that is looked at, by `time.monotonic`.

        Raises:
            Gone: there is no such resource.
        """
        try:
            seen, now = self._seen.run(key), self._clock.now()
            self._mind_the_clock(seen)
            due = seen.read_at is None or now - seen.read_at >= self._read_every(key, now)
            if due and seen.resource is not None and seen.resource.get("status"):
                # Not so a new run, of which there is nothing but itself to read.
                due = self._reads.take(time.monotonic())
                if not due and seen.read_at is None:
                    return READ_LATER
            if seen.resource is not None and not due:
                view = _View(seen.resource, *seen.children())
                run, decision = await self._decide(key, view, now)
                if not decision.acts:
                    return await self._follow(key, view, run, decision)
            view = await self._read(key, now)
            run, decision = await self._decide(key, view, now)
            again = await self._follow(key, view, run, decision)
            if decision.acts:
                DECISION_SECONDS.observe(time.monotonic() - since)
            return again
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                self._seen.run(key).read_at = None
                return _AT_ONCE
            raise

    def _mind_the_clock(self, seen: SeenRun) -> None:
        """Forgets when the run was read and written by a clock that has been set since."""
        total = self._clock.set_so_far()
        if seen.clock is None:
            seen.clock = total
        elif seen.clock != total:
            seen.read_at = seen.written_at = None

    async def _follow(self, key: Key, view: _View, run: Run | None, decision: Decision) -> timedelta | None:
        """Does what was decided, unless another installation looks after the run."""
        seen = self._seen.run(key)
        if (owner := self._ownership.left_to(decision, seen, time.monotonic())) is not None:
            if seen.left_to != owner:
                await self._report(key, view.resource, self._ownership.notice(owner))
                seen.left_to = owner
            seen.clock = self._clock.set_so_far()  # the status's times are its owner's affair
            return self._ownership.look_again
        LOOKS.labels(str(decision.acts).lower()).inc()
        return await self._apply(key, view, run, self._ownership.owned(decision))

    async def _read(self, key: Key, now: datetime) -> _View:
        resource = await self._cluster.resource(key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            raise self._gone(key)
        jobs, pods = await self._cluster.children(resource)
        seen = self._seen.run(key)
        seen.saw(resource)
        seen.read_at = now
        seen.jobs = {job.name: job for job in jobs}
        seen.pods = {}
        for owner, pod in pods:
            seen.saw_pod(owner, pod)
        return _View(resource, *seen.children())

    def _gone(self, key: Key) -> Gone:
        """Forgets a run that is not there any more."""
        self._seen.forget(key)
        self._answering.discard(key)
        return Gone()

    def _read_every(self, key: Key, now: datetime) -> timedelta:
        """How often all of a run is read while nothing is known to happen to it."""
        moved_at, asked_every = self._seen.run(key).moved_at, self._paced().progress_every
        moves = key in self._answering and moved_at is not None and now - moved_at < READ_ALL_EVERY + asked_every
        return READ_MOVING_EVERY if moves else READ_ALL_EVERY

    def _paced(self) -> Settings:
        return paced(self._settings.for_decisions(), len(self._answering))

    async def _decide(self, key: Key, view: _View, now: datetime) -> tuple[Run | None, Decision]:
        """The run, None where the manifest cannot be used, and the decision about it."""
        refused: dict[str, str] = view.resource.get(REFUSED) or {}
        if "status" in refused:
            raise UnreadableError(f"{refused['status']}: nothing is known of the run; delete the resource")
        status, unreadable = read_status(view.resource.get("status"))
        if (unwritten := self._seen.run(key).unwritten) is not None:
            status = unwritten.on(status)
        written_by = self._seen.run(key).clock
        if written_by is not None:
            status = moved(status, self._clock.set_so_far() - written_by)
        generation = view.resource["metadata"]["generation"]
        if refused:
            message = f"{'; '.join(refused.values())}: it is not looked at; make a new DMDDistillation with less in it"
            return None, unusable(status, message, now, generation)
        try:
            manifest, resolved = read_manifest(view.resource, status, self._settings.defaults)
        except BadInputError as error:
            return None, unusable(status, error.message, now, generation)
        jobs = with_pods(view.jobs, view.pods, now)
        resolved = completed(resolved, unreadable, manifest, jobs)
        run = Run(manifest, resolved, jobs, now, generation=generation, settings=self._paced())
        if (address := _progress_address(run)) is not None:
            run = replace(run, progress=await self._cluster.progress(address))
        (self._answering.discard if run.progress is None else self._answering.add)(key)
        decision = decide(run)
        self._seen.run(key).moved_at = decision.status.last_progress_time
        if unreadable:
            decision = replace(decision, events=(*decision.events, _status_reset(unreadable)))
        return run, decision

    async def _apply(self, key: Key, view: _View, run: Run | None, decision: Decision) -> timedelta | None:
        resource = view.resource
        if decision.delete_resource:
            await self._cluster.delete_resource(resource)
            raise Gone
        status, seen = decision.status.to_resource(), self._seen.run(key)
        if self._may_wait(key, resource, run, decision):
            seen.unwritten = Unwritten.of(decision.status)
        elif status != resource.get("status"):
            try:
                resource = await self._cluster.write_status(resource, status)
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                raise self._gone(key) from error  # deleted a moment ago
            seen.saw(resource)
            seen.unwritten, seen.written_at = None, self._clock.now()
        seen.clock = self._clock.set_so_far()
        uid = resource["metadata"]["uid"]
        # One after the other: a run has as many of the operator's connections as any other, whatever it owns.
        for name in decision.delete:
            await self._cluster.delete_attempt(key.namespace, name, uid)
        for name in decision.delete_services:
            await self._cluster.delete_service(key.namespace, name, uid)
            if (job := seen.jobs.get(name)) is not None:
                seen.jobs[name] = replace(job, has_service=False)
        if decision.create is not None and run is not None:
            owner = Owner(key.namespace, uid)
            try:
                if self._settings.progress_from is not None:  # before there is a pod that it protects
                    await self._cluster.create(network_policy(run.manifest, owner, self._settings.progress_from))
                if decision.create == _FIRST:
                    await self._rehearse(key, resource, run.manifest, owner)
                for child in attempt_objects(run.manifest, *decision.create, owner):
                    await self._cluster.create(child)
            except RefusedError as error:
                announced = replace(run, status=decision.status)
                message = _with_fields(error, run.manifest, decision.create[0])
                return await self._apply(key, replace(view, resource=resource), run, refused(announced, message))
        for event in decision.events:
            await self._report(key, resource, event)
        return decision.again

    def _may_wait(self, key: Key, resource: dict[str, Any], run: Run | None, decision: Decision) -> bool:
        """Returns whether a status is not worth a write yet: only figures moved, and the last write is not long ago."""
        written_at = self._seen.run(key).written_at
        if run is None or written_at is None or decision.acts or run.now - written_at >= run.settings.write_every:
            return False
        stored, unreadable = read_status(resource.get("status"))
        return not unreadable and only_moved(stored, decision.status)

    async def _rehearse(self, key: Key, resource: dict[str, Any], manifest: DMDDistillation, owner: Owner) -> None:
        """Finds what the API server would refuse of the later stages while nothing is lost by it.

        Raises:
            RefusedError: an object of a later stage would be refused.
        """
        warnings: set[str] = set()
        for stage in stages(manifest)[1:]:
            try:
                for child in attempt_objects(manifest, stage, 1, owner):
                    warnings.update(await self._cluster.rehearse(child))
            except RefusedError as error:
                raise RefusedError(f"{stage} would be refused: {_with_fields(error, manifest, stage)}") from error
        for warning in sorted(warnings):
            await self._report(key, resource, Event("ApiServerWarning", warning, warning=True))

    async def _report(self, key: Key, resource: dict[str, Any], event: Event) -> None:
        if not self._seen.run(key).allowances[event.reason].take(time.monotonic()):
            return
        log.info("%s/%s: %s: %s", key.namespace, key.name, event.reason, event.message)
        try:
            await self._cluster.report(resource, event)
        except ApiException as error:
            log.warning("%s/%s: the event could not be written: %s", key.namespace, key.name, message_of(error))


def _with_fields(error: RefusedError, manifest: DMDDistillation, stage: Stage) -> str:
    """What the API server said of a stage's objects, and the fields of the manifest that it may speak of.

    Of a quantity it cannot read it names no field at all, and of others the Job's.
    """
    fields = " and ".join(pod_fields(manifest, stage))
    return f"{error} (the pods of {stage} are made of {fields})" if error.malformed and fields else str(error)


def _status_reset(unreadable: tuple[str, ...]) -> Event:
    fields = ", ".join(f"status.{field}" for field in unreadable)
    remedy = "reset to what the run's conditions and Jobs say; nothing but the operator should write a status"
    return Event("StatusReset", f"{fields} could not be read: {remedy}", warning=True)


def _progress_address(run: Run) -> str | None:
    """The address at which rank 0 of the present attempt answers."""
    pods = run.present_job.pods if run.present_job is not None else ()
    rank_0 = next((pod for pod in pods if pod.index == 0 and pod.phase == "Running" and pod.ip), None)
    if rank_0 is None:
        return None
    host = f"[{rank_0.ip}]" if rank_0.ip and ":" in rank_0.ip else rank_0.ip
    return f"{host}:{PROGRESS_PORT}"
