"""Who may ask, and how much: the token, the Host header, the size of a request, and what a page may load"""

import base64
import binascii
import hmac
import json
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmdctl.serving.metrics import Metrics

MAX_BODY = 64 * 1024
OPEN = ("/healthz",)
"""What kubelets ask without a token."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
HEADERS = {
    # The page is one file, one style and htmx, all from here; nothing is evaluated, framed or sent elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Middleware around the whole application.

    Args:
        app: what is guarded.
        token: what `Authorization: Bearer` must say, or the password of `Basic`, which browsers ask for; None: anyone
            may ask who reaches the port.
        hosts: the names in Host that are answered, without a port; None: all. A page elsewhere on the web may make its
            own name point to a loopback address, and would read what is served there.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Iterable[str] | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                self._metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        headers = Headers(scope=scope)
        if scope["path"] not in OPEN:
            if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
                await _refuse(answer, 421, f"Host: only {', '.join(sorted(self._hosts))} are answered here")
                return
            if self._token is not None and not _has_token(headers.get("authorization", ""), self._token):
                message = "Authorization: missing or wrong; send Bearer TOKEN"
                await _refuse(answer, 401, message, {"WWW-Authenticate": 'Basic realm="dmdctl serve", charset="UTF-8"'})
                return
        body = await _body(receive)
        if body is None:
            await _refuse(answer, 413, f"body: is larger than {MAX_BODY} bytes")
            return
        await self._app(scope, _again(body, receive), answer)


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body; None where it is larger than allowed."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives the body that was read already, and then what follows it: that the client has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _has_token(authorization: str, token: bytes) -> bool:
    """Compared in a time that does not depend on where they differ."""
    scheme, _, value = authorization.partition(" ")
    given = value.strip().encode("latin-1")  # which is how servers read headers
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given, token)


def _host(header: str) -> str:
    """Without the port, and an IPv6 address without its brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


async def _refuse(send: Send, status: int, message: str, more: dict[str, str] | None = None) -> None:
    field = message.partition(":")[0]
    body = json.dumps({"errors": [{"field": field, "message": message.partition(": ")[2]}]}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(more or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
