"""A proxy before the API server that answers some requests with 429, as priority and fairness does under load."""

import asyncio
import base64
import random
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import aiohttp
import yaml
from aiohttp import web

from dmdctl.local.local_runner import free_port
from tests.operator.live import eventually

DROPPED = {"host", "transfer-encoding", "content-length", "content-encoding"}


@dataclass
class Throttled:
    """A running proxy.

    Attributes:
        kubeconfig: leads to it.
        turned_away: requests so far that were answered with 429.
    """

    kubeconfig: Path
    turned_away: int = 0


@contextmanager
def throttled(kubeconfig: Path, own: Path, share: float, choose: random.Random) -> Iterator[Throttled]:
    """A proxy for as long as the context lasts.

    Args:
        kubeconfig: of the API server.
        own: where the proxy's is written.
        share: of the requests, watches among them, that are turned away.
        choose: which ones.
    """
    context = yaml.safe_load(kubeconfig.read_text())
    cluster, user = context["clusters"][0]["cluster"], context["users"][0]["user"]
    upstream, tls = cluster["server"], _tls(cluster, user, own)
    port = free_port()
    context["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
    context["users"][0]["user"] = {}
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(yaml.safe_dump(context))
    server, ready, stop = Throttled(own), Event(), Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)) as session:

            async def answer(request: web.Request) -> web.StreamResponse:
                if choose.random() < share:
                    server.turned_away += 1
                    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429}
                    body |= {"reason": "TooManyRequests", "message": "too many requests, please try again later"}
                    return web.json_response(body, status=429, headers={"Retry-After": "1"})
                headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
                async with session.request(
                    request.method,
                    upstream + request.raw_path,
                    headers=headers,
                    data=await request.read() or None,
                    ssl=tls,
                ) as found:
                    kept = {name: value for name, value in found.headers.items() if name.lower() not in DROPPED}
                    response = web.StreamResponse(status=found.status, headers=kept)
                    await response.prepare(request)
                    async for chunk in found.content.iter_any():
                        await response.write(chunk)
                    return response

            app = web.Application(client_max_size=16 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            ready.set()
            await asyncio.to_thread(stop.wait)
            await runner.cleanup()

    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(asyncio.run, serve())
        eventually(lambda: ready.is_set() or serving.done(), "the proxy answers")
        try:
            yield server
        finally:
            stop.set()
            serving.result(20)


def _tls(cluster: dict[str, str], user: dict[str, str], own: Path) -> ssl.SSLContext:
    """What the API server knows the kubeconfig's user by."""

    def file(part: dict[str, str], name: str) -> str:
        if name in part:
            return part[name]
        path = own.with_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(part[f"{name}-data"]))
        return str(path)

    context = ssl.create_default_context(cafile=file(cluster, "certificate-authority"))
    context.load_cert_chain(file(user, "client-certificate"), file(user, "client-key"))
    return context
