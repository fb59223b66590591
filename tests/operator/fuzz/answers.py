"""What rank 0 of each run answers when it is asked for its progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from dmd_api.apps import PROGRESS_PORT
from dmd_api.labels import DISTILLATION
from tests.operator.serving import serving

NOWHERE = "127.3.0.1"


class Answers:
    """Answers, each at an address of its own, at which no other test answers.

    Attributes:
        bodies: what is answered, by run; by `answer`.
        asked: the runs that were asked.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: set[str] = set()
        self._addresses: dict[str, str] = {}

    def answer(self, name: str, body: bytes) -> None:
        """From now on rank 0 of a run answers with this."""
        self._addresses[name] = _address(len(self._addresses))
        self.bodies[name] = body

    def address(self, pod: dict[str, Any]) -> str:
        """Where a pod answers; one of a run that has no answer does nowhere."""
        return self._addresses.get(pod["metadata"]["labels"][DISTILLATION], NOWHERE)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Answers until the context ends."""

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            host = request.transport.get_extra_info("sockname")[0]
            name = next(name for name, address in self._addresses.items() if address == host)
            self.asked.add(name)
            return web.Response(body=self.bodies.get(name, b"{}"), content_type="application/json")

        app = web.Application()
        app.router.add_get("/progress", answer)
        with serving(app, *((address, PROGRESS_PORT) for address in self._addresses.values())):
            yield


def _address(number: int) -> str:
    return f"127.2.{number // 200}.{number % 200 + 1}"
