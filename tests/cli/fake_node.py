"""A node that runs nothing, but answers the API server for the logs of its pods as a kubelet does."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiohttp import web

from tests.cluster.control_plane import LOOPBACK, ControlPlane

NODE = "fake"


@dataclass
class _Log:
    lines: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False


class FakeNode:
    """Tests write its pods' logs; pods that it was told nothing of have none.

    Attributes:
        asked: the queries that came, with the pod's name.
    """

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self.asked: list[dict[str, str]] = []

    def write(self, pod: str, *texts: str, at: float | None = None) -> None:
        """Lines of a pod's log.

        Args:
            pod: its name.
            texts: a line each.
            at: when they are written, in seconds since 1970; now by default.
        """
        log = self._logs.setdefault(pod, _Log())
        for text in texts:
            log.lines.append((time.time() if at is None else at, text))
            at = None if at is None else at + 0.001

    def end(self, pod: str) -> None:
        self._logs.setdefault(pod, _Log()).ended = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        pod, query = request.match_info["pod"], dict(request.query)
        self.asked.append({"pod": pod, **query})
        if pod not in self._logs:
            return web.Response(status=500, text=f"no log of {pod} here")
        log = self._logs[pod]
        since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
        past = [line for line in log.lines if line[0] >= since]
        shown = len(log.lines)
        if "tailLines" in query:
            past = past[len(past) - min(len(past), int(query["tailLines"])) :]
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"".join(f"{_stamp(at)} {text}\n".encode() for at, text in past))
            if query.get("follow") != "true" or (log.ended and shown == len(log.lines)):
                return response
            await asyncio.sleep(0.02)
            past, shown = log.lines[shown:], len(log.lines)


@contextmanager
def fake_node(api: ControlPlane) -> Iterator[FakeNode]:
    """The node, known to the API server."""
    node, ready = FakeNode(), threading.Event()
    certificate, key = api.authority.sign("fake-node", f"system:node:{NODE}", ("system:nodes",), hosts=(LOOPBACK,))
    port, stop = 0, lambda: None

    async def serve() -> None:
        nonlocal port, stop
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        stop = partial(loop.call_soon_threadsafe, over.set)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", node.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    api.kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    status = {
        "addresses": [{"type": "InternalIP", "address": LOOPBACK}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    _patch_status(api, ("node", NODE), {"status": status})
    try:
        yield node
    finally:
        api.kubectl("delete", "node", NODE)
        stop()
        thread.join(20)


def make_pod(api: ControlPlane, run: str, stage: str, attempt: int, index: int) -> str:
    """A pod on the node, as the operator's Job would have it; its name."""
    name = f"{run}-{stage}-{attempt}-{index}"
    labels = {
        "dmd-operator.io/distillation": run,
        "dmd-operator.io/stage": stage,
        "dmd-operator.io/attempt": str(attempt),
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    container = {"name": "trainer", "image": "docker.io/local/none:1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": NODE, "restartPolicy": "Never", "containers": [container]},
    }
    api.kubectl.apply(pod)
    return name


def set_state(api: ControlPlane, pod: str, **state: Any) -> None:
    """Writes what the kubelet says of the pod's container: `running={}`, `terminated={"exitCode": 0}`."""
    phase = "Running" if "running" in state else "Pending" if "waiting" in state else "Succeeded"
    container = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    _patch_status(api, ("pod", pod), {"status": {"phase": phase, "containerStatuses": [container]}})


def _patch_status(api: ControlPlane, what: tuple[str, str], body: dict[str, Any]) -> None:
    api.kubectl("patch", *what, "--subresource=status", "--type=merge", "--patch", json.dumps(body))


def _stamp(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}000Z"
