"""Serves /healthz, /readyz and /metrics."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


async def serve(
    port: int, metrics: CollectorRegistry, is_alive: Callable[[], bool], is_ready: Callable[[], bool]
) -> web.AppRunner:
    """Serves until the runner is cleaned up.

    An answer at all means that the event loop runs. A replica that waits for the lead is ready.

    Args:
        port: on all addresses; 0: a free one.
        metrics: what /metrics shows.
        is_alive: what /healthz asks.
        is_ready: what /readyz asks.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_alive() else web.Response(status=503, text="a watch has ended\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(status=503, text="starting\n")

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
