"""An aiohttp application that answers from a thread of its own, while a test blocks."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from aiohttp import web

from tests.operator.live import eventually


@contextmanager
def serving(app: web.Application, *addresses: tuple[str, int]) -> Iterator[None]:
    """Serves it for as long as the context lasts.

    Args:
        app: the application.
        addresses: hosts and ports at which it answers.
    """
    ready, stop = Event(), Event()

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        for host, port in addresses:
            await web.TCPSite(runner, host, port).start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await runner.cleanup()

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, serve())
        eventually(lambda: ready.is_set() or served.done(), "it is served")
        try:
            yield
        finally:
            stop.set()
            served.result(20)
