"""A proxy before the API server that answers some requests with 429, as priority and fairness does under load."""

import base64
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from dmdctl.local.local_runner import free_port
from tests.operator.serving import serving

SESSION = web.AppKey("session", aiohttp.ClientSession)
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
    server = Throttled(own)

    async def session(app: web.Application) -> AsyncIterator[None]:
        forever = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=forever) as app[SESSION]:
            yield

    async def answer(request: web.Request) -> web.StreamResponse:
        if choose.random() < share:
            server.turned_away += 1
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429}
            status |= {"reason": "TooManyRequests", "message": "too many requests, please try again later"}
            return web.json_response(status, status=429, headers={"Retry-After": "1"})
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        body, url = await request.read() or None, upstream + request.raw_path
        asked = request.app[SESSION].request(request.method, url, headers=headers, data=body, ssl=tls)
        async with asked as found:
            kept = {name: value for name, value in found.headers.items() if name.lower() not in DROPPED}
            response = web.StreamResponse(status=found.status, headers=kept)
            await response.prepare(request)
            async for chunk in found.content.iter_any():
                await response.write(chunk)
            return response

    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", answer)
    with serving(app, ("127.0.0.1", port)):
        yield server


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
