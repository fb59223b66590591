"""`dmdctl logs`: the logs of all workers of an attempt, as one."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO

from kubernetes.aio.client import ApiException, CoreV1Api, CustomObjectsApi

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.labels import DISTILLATION
from dmd_api.stages import Stage
from dmd_api.status import STAGE_DONE, RunStatus
from dmdctl.cluster.cluster import REQUEST_SECONDS, UNREACHABLE, Cluster, connect, find, message_of
from dmdctl.cluster.following import REFUSALS, Objects, Outage, snapshots
from dmdctl.cluster.log_lines import Line, Worker, format_line, in_order, latest, worker_of
from dmdctl.cluster.merging import Merge
from dmdctl.cluster.pod_logs import follow_log, read_log
from dmdctl.cluster.run_view import read_status
from dmdctl.cluster.target import Target
from dmdctl.console import Console

BATCH_SECONDS = 0.2
"""Lines that come together are put in order together."""


@dataclass(frozen=True)
class Wanted:
    """The logs that are asked for.

    Attributes:
        stage: None: the latest that has pods.
        attempt: None: the latest that has pods.
        tail: only each worker's last so many lines of what is there already; None: all.
        follow: go on, with the attempts that come too, until there will be no more.
    """

    stage: Stage | None = None
    attempt: int | None = None
    tail: int | None = None
    follow: bool = False

    def fits(self, worker: Worker) -> bool:
        """True for a worker that is asked for, if not of too old an attempt."""
        return self.stage in {None, worker.stage} and self.attempt in {None, worker.attempt}

    def over(self, status: RunStatus) -> bool:
        """True once there will be no more workers that fit."""
        if status.completion_time is not None:
            return True
        if self.stage is not None and status.is_true(STAGE_DONE[self.stage]):
            return True
        ended = self.attempt is not None and status.ended_attempt >= self.attempt
        return ended and self.stage in {None, status.stage}


def print_logs(name: str, wanted: Wanted, target: Target) -> ExitCode:
    """Prints the logs.

    Raises:
        BadInputError: there is no such run or no such attempt, or the cluster cannot be used.
        InfrastructureError: the API server does not answer.
    """
    try:
        asyncio.run(_print(name, wanted, target))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


async def _print(name: str, wanted: Wanted, target: Target) -> None:
    console = Console()
    out = _Printer(console.file, console.color_system is not None and not console.no_color)
    async with connect(target) as cluster:
        resource = await find(cluster, name)
        workers = await _workers(cluster, name)
        chosen = latest(workers, wanted.stage, wanted.attempt)
        if not chosen and (not wanted.follow or wanted.over(read_status(resource))):
            raise _nothing(name, wanted, workers)
        known: dict[str, int] = {}
        async for line in in_order([_past(cluster, worker, wanted.tail) for worker in chosen]):
            known[line.worker.pod] = max(line.at, known.get(line.worker.pod, 0))
            out.print([line])
        if wanted.follow:
            if wanted.tail == 0:
                known = {worker.pod: time.time_ns() for worker in chosen}
            await _Follower(cluster, name, wanted, out, known).follow(chosen)


class _Printer:
    def __init__(self, file: IO[str], colour: bool) -> None:
        self._file, self._colour = file, colour

    def print(self, lines: list[Line]) -> None:
        self._file.writelines(format_line(line, self._colour) for line in lines)
        self._file.flush()


class _Follower:
    """Prints what is written from now on.

    Args:
        cluster: where the run is.
        name: the run's.
        wanted: what is asked for.
        out: where it goes.
        known: until when a pod's log is printed already, by the pod's name.
    """

    def __init__(self, cluster: Cluster, name: str, wanted: Wanted, out: _Printer, known: dict[str, int]) -> None:
        self._cluster, self._name, self._wanted, self._out, self._known = cluster, name, wanted, out, known
        self._present: dict[str, Worker] = {}
        self._followed: set[str] = set()
        self._open: set[str] = set()
        self._pods_seen = self._over = False

    async def follow(self, chosen: list[Worker]) -> None:
        """Returns when there will be no more; the attempt of `chosen` is the first that is followed."""
        oldest = chosen[0].age if chosen else (0, 0)
        outage = Outage(self._cluster, _say)
        async with Merge[Line | Worker | _Pods | _Run]() as changes:
            changes.add(_pods(self._cluster, outage, self._name))
            changes.add(_run(self._cluster, outage, self._name))
            while not (self._over and self._pods_seen and not self._open):
                batch = await changes.batch(BATCH_SECONDS)
                self._out.print(sorted((i for i in batch if isinstance(i, Line)), key=lambda line: line.at))
                self._open -= {item.pod for item in batch if isinstance(item, Worker)}
                for item in batch:
                    if isinstance(item, _Run):
                        # Pods are created and end before the status says so: what it announces is among the next pods.
                        over = self._name not in item.objects or self._wanted.over(
                            read_status(item.objects[self._name])
                        )
                        self._over = over
                    elif isinstance(item, _Pods):
                        self._pods_seen = True
                        self._take_up(item, oldest, changes)

    def _take_up(self, pods: "_Pods", oldest: tuple[int, int], changes: "Merge[Line | Worker | _Pods | _Run]") -> None:
        self._present = {worker.pod: worker for pod in pods.objects.values() if (worker := worker_of(pod)) is not None}
        for worker in sorted(self._present.values(), key=lambda w: (w.age, w.index)):
            if worker.pod in self._followed or not worker.started or worker.age < oldest:
                continue
            if self._wanted.fits(worker):
                self._followed.add(worker.pod)
                self._open.add(worker.pod)
                changes.add(self._log_of(worker))

    def _log_of(self, worker: Worker) -> AsyncIterator[Line | Worker]:
        def present() -> Worker | None:
            return self._present.get(worker.pod)

        return follow_log(self._cluster, worker, self._known.get(worker.pod), present, _say)


@dataclass(frozen=True)
class _Pods:
    objects: Objects


@dataclass(frozen=True)
class _Run:
    objects: Objects


async def _pods(cluster: Cluster, outage: Outage, name: str) -> AsyncIterator[_Pods]:
    lister = CoreV1Api(cluster.api).list_namespaced_pod
    async for objects in snapshots(outage, "pods", lister, cluster.namespace, label_selector=f"{DISTILLATION}={name}"):
        yield _Pods(objects)


async def _run(cluster: Cluster, outage: Outage, name: str) -> AsyncIterator[_Run]:
    lister = CustomObjectsApi(cluster.api).list_namespaced_custom_object
    where = (GROUP, VERSION, cluster.namespace, PLURAL)
    async for objects in snapshots(outage, "resource", lister, *where, field_selector=f"metadata.name={name}"):
        yield _Run(objects)


async def _workers(cluster: Cluster, name: str) -> list[Worker]:
    try:
        listed = await CoreV1Api(cluster.api).list_namespaced_pod(
            cluster.namespace, label_selector=f"{DISTILLATION}={name}", _request_timeout=REQUEST_SECONDS
        )
    except (ApiException, *UNREACHABLE) as error:
        raise cluster.in_words(error) from error
    pods = map(cluster.api.sanitize_for_serialization, listed.items)
    return [worker for pod in pods if (worker := worker_of(pod)) is not None]


async def _past(cluster: Cluster, worker: Worker, tail: int | None) -> AsyncIterator[Line]:
    """Reads the worker's lines so far; a log that cannot be had does not keep the others' back."""
    if not worker.started:
        _say(f"{worker.label} has not started{f' ({worker.waiting})' if worker.waiting else ''}")
        return
    try:
        async for line in read_log(cluster, worker, tail=tail):
            yield line
    except ApiException as error:
        if error.status in REFUSALS - {HTTPStatus.NOT_FOUND}:
            raise cluster.in_words(error) from error
        _say(f"{worker.label} no log: {message_of(error)}")
    except UNREACHABLE as error:
        raise cluster.in_words(error) from error


def _nothing(name: str, wanted: Wanted, workers: list[Worker]) -> BadInputError:
    there = dict.fromkeys(worker.attempt_name for worker in sorted(workers, key=lambda w: w.age))
    if not there:
        return BadInputError(
            f"{name}: has no pods; their logs go with them (--follow waits for pods of a run that goes on)"
        )
    asked = f"{wanted.stage or 'any stage'}{f', attempt {wanted.attempt}' if wanted.attempt else ''}"
    return BadInputError(f"{name}: has no pods of {asked}; there are those of {', '.join(there)}")


def _say(text: str) -> None:
    Console(stderr=True).print_line(text, style="yellow")
