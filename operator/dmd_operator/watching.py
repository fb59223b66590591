"""Runs kopf's watchers of the namespaces that can be read, and starts them again when one has ended."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, cast

import aiohttp
import kopf
from kubernetes.aio.client import ApiException

from dmd_api.manifest import API_VERSION
from dmd_operator.cluster import PLURAL, message_of
from dmd_operator.handlers import kopf_settings
from dmd_operator.objects import Objects

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 30.0
FIRST_LOOK_AGAIN_SECONDS = 2.0
FIRST_BACK_OFF, LONGEST_BACK_OFF = 1.0, 30.0
_WATCHER = "watcher for "
"""How kopf names its watchers' tasks. It logs the end of one, and works on without it."""


class Watching:
    """Watches the namespaces that can be read.

    One that cannot be read (it was deleted, and its Role with it) is asked for again now and then, and keeps no other
    from being watched.

    Args:
        objects: the API server's.
        namespaces: to watch; none: all of them.
        on_lost: gets each namespace that was watched and cannot be read any more.
    """

    def __init__(self, objects: Objects, namespaces: tuple[str, ...], on_lost: Callable[[str], None]) -> None:
        self._objects, self._wanted, self._on_lost = objects, namespaces, on_lost
        self._said: dict[str | None, str] = {}
        self.healthy = True
        """False from the end of a watcher to its next start."""

    async def until_readable(self, stop: asyncio.Event) -> None:
        """Returns when there is something to watch, or at the stop.

        A chart installs CRD, rights and operator at once.
        """
        while not stop.is_set() and await self._readable() is None:
            await _wait(stop, FIRST_LOOK_AGAIN_SECONDS)

    async def run(self, registry: kopf.OperatorRegistry, stop: asyncio.Event) -> None:
        """Watches until the stop.

        Args:
            registry: kopf's handlers.
            stop: ends it.
        """
        pause = FIRST_BACK_OFF
        watched: tuple[str, ...] = ()
        while not stop.is_set():
            namespaces = await self._readable()
            for namespace in set(watched).difference(namespaces or ()):
                self._on_lost(namespace)
            watched = namespaces or ()
            if namespaces is None:
                await _wait(stop, FIRST_LOOK_AGAIN_SECONDS)
                continue
            self.healthy = True
            began = asyncio.get_running_loop().time()
            ended = await self._watch(registry, namespaces, stop)
            if ended is None:
                continue
            self.healthy = False
            log.error("%s has ended; all watchers are started again in %.0f s", ended, pause)
            await _wait(stop, pause)
            lasted = asyncio.get_running_loop().time() - began >= LONGEST_BACK_OFF
            pause = FIRST_BACK_OFF if lasted else min(2 * pause, LONGEST_BACK_OFF)

    async def _watch(
        self, registry: kopf.OperatorRegistry, namespaces: tuple[str, ...], stop: asyncio.Event
    ) -> str | None:
        """Watches these until the stop, or until others can be read; returns the name of a watcher that has ended."""
        over = asyncio.Event()
        watchers = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=kopf_settings(),
                standalone=True,
                identity=cast(Any, "dmd-operator"),  # it asks for the user's name otherwise, which a pod's has not
                clusterwide=not namespaces,
                namespaces=namespaces,
                stop_flag=over,
            )
        )
        ended = asyncio.create_task(_first_end())
        others: list[Coroutine[Any, Any, Any]] = [stop.wait()]
        if self._wanted:
            others.append(self._others_readable(namespaces))
        tasks = {asyncio.create_task(other) for other in others} | {ended}
        try:
            await asyncio.wait({watchers, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if watchers.done():
                if watchers.exception() is not None:
                    return "kopf"
                stop.set()  # kopf takes the process's signals for itself, and returns at one
            return ended.result() if ended.done() else None
        finally:
            for task in tasks:
                task.cancel()
            over.set()
            await asyncio.gather(watchers, *tasks, return_exceptions=True)

    async def _others_readable(self, namespaces: tuple[str, ...]) -> None:
        """Returns when other namespaces can be read than these."""
        while await self._readable(namespaces) in {namespaces, None}:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _readable(self, before: tuple[str, ...] = ()) -> tuple[str, ...] | None:
        """The wanted namespaces that can be read, empty for all of them; None where nothing can be.

        Args:
            before: those that could be read, and that an API server that is away does not make unreadable.
        """
        if not self._wanted:
            return () if await self._can_read(None, False) else None
        return tuple([name for name in self._wanted if await self._can_read(name, name in before)]) or None

    async def _can_read(self, namespace: str | None, before: bool) -> bool:
        try:
            for plural in (PLURAL, "jobs", "pods"):
                await anext(self._objects.pages(plural, namespace, items=1))
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            why = message_of(error) if isinstance(error, ApiException) else f"{type(error).__name__}: {error}"
            if self._said.get(namespace) != why:
                where = "" if namespace is None else f" in the namespace {namespace}"
                log.warning("%s %s cannot be watched yet%s: %s", API_VERSION, PLURAL, where, why)
                self._said[namespace] = why
            refused = isinstance(error, ApiException) and error.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
            return before and not refused
        self._said.pop(namespace, None)
        return True


async def _first_end() -> str:
    """Returns the name of the first of kopf's watchers that ends by itself; kopf cancels them when it stops."""
    watchers: set[asyncio.Task[Any]] = set()
    while True:
        watchers |= {task for task in asyncio.all_tasks() if task.get_name().startswith(_WATCHER)}
        if ended := next((task for task in watchers if task.done() and not task.cancelled()), None):
            return ended.get_name()
        if at_work := {task for task in watchers if not task.done()}:
            await asyncio.wait(at_work, return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_AGAIN_SECONDS)
        else:
            await asyncio.sleep(0.1)  # kopf has not started them yet


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
