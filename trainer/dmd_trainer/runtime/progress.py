"""Rank 0's progress while a stage runs: `/progress` as JSON, `/metrics` for Prometheus.

Showing never holds up training: the board is replaced as a whole, and a thread of the server's reads it.
"""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from dmd_api.runtime import Progress
from dmd_api.stages import Stage

MESSAGES = 20


class ProgressBoard:
    """The present `Progress` of a stage.

    Args:
        stage: the stage that runs.
        attempt: the number of this attempt.
    """

    def __init__(self, stage: Stage, attempt: int = 1) -> None:
        self._current = Progress(stage=stage, attempt=attempt)
        self._changed = time.monotonic()
        self._counting_since: float | None = None
        self._counted = 0

    @property
    def current(self) -> Progress:
        """The present progress."""
        return self._current.model_copy(update={"unchanged_seconds": time.monotonic() - self._changed})

    def update(self, **fields: Any) -> None:
        """Replaces fields of `Progress`."""
        before, self._current = self._current, self._current.model_copy(update=fields)
        if (before.step, before.activity) != (self._current.step, self._current.activity):
            self._changed = time.monotonic()

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Shows another activity for as long as the block takes; an error leaves it, since it says what failed."""
        before = self._current.activity
        self.update(activity=activity)
        yield
        self.update(activity=before)

    def advance(self, count: int) -> None:
        """Counts `count` more steps, up to the total (a last batch may be smaller), and estimates what is left."""
        now = time.monotonic()
        if self._counting_since is None:
            self._counting_since = now  # what came before the first step (loading, compiling) says nothing of the rest
            eta = None
        else:
            self._counted += count
            left = max(self._current.total - self._current.step - count, 0)
            eta = left * (now - self._counting_since) / self._counted if self._current.total else None
        step = self._current.step + count
        self.update(step=min(step, self._current.total) if self._current.total else step, eta_seconds=eta)

    def message(self, text: str) -> None:
        """Shows a line that a person should see, and logs it."""
        print(text, flush=True)
        self.update(messages=[*self._current.messages, text][-MESSAGES:])


class ProgressServer:
    """Serves a board over HTTP from a thread of its own, as a context manager.

    Args:
        board: the progress to show.
        address: `host:port`, `[host]:port` for IPv6, `:port` for every address of both kinds; an empty one serves
            nothing.
    """

    def __init__(self, board: ProgressBoard, address: str) -> None:
        self._server: ThreadingHTTPServer | None = None
        if address:
            host, _, port = address.rpartition(":")
            self._server = _listen(host.strip("[]"), int(port), _handler(board))

    @property
    def port(self) -> int | None:
        """The port that it serves on; None where it serves nothing."""
        return self._server.server_port if self._server else None

    def __enter__(self) -> Self:
        if self._server:
            threading.Thread(target=self._server.serve_forever, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    both = not host and socket.has_dualstack_ipv6()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if both or ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            if both:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever asks may hang up before the answer: that is no trouble of the run's, and not in its log."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    return Server((host, port), handler)


def _handler(board: ProgressBoard) -> type[BaseHTTPRequestHandler]:
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    registry = _registry(board)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/progress":
                    self._answer(200, "application/json", board.current.model_dump_json().encode())
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                case _:
                    self._answer(404, "text/plain", b"here are /progress and /metrics\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Requests come every second: they are not logged."""

    return Handler


def _registry(board: ProgressBoard) -> Any:
    """A Prometheus registry whose one collector reads the board."""
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    class BoardCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            now = board.current
            values = {
                "dmd_step": ("Steps done, in the stage's own unit.", now.step),
                "dmd_steps_total": ("Steps that the stage has.", now.total),
                "dmd_attempt": ("The number of this attempt.", now.attempt),
                "dmd_eta_seconds": ("Estimated seconds to the stage's end.", now.eta_seconds),
                "dmd_images_per_second": ("Training throughput over all processes.", now.images_per_second),
                "dmd_fid": ("The latest Frechet distance of the generator's EMA.", now.fid),
                "dmd_best_fid": ("The lowest Frechet distance so far.", now.best_fid),
            }
            for name, (help_text, value) in values.items():
                if value is not None:
                    family = GaugeMetricFamily(name, help_text, labels=["stage"])
                    family.add_metric([now.stage], value)
                    yield family
            losses = GaugeMetricFamily("dmd_loss", "The latest losses.", labels=["stage", "loss"])
            for loss, value in now.losses.items():
                losses.add_metric([now.stage, loss], value)
            yield losses
            health = GaugeMetricFamily("dmd_health", "The latest measures of health.", labels=["stage", "measure"])
            for measure, value in now.health.items():
                health.add_metric([now.stage, measure], value)
            yield health
            warnings = GaugeMetricFamily("dmd_health_warnings", "What is wrong with the training.", labels=["stage"])
            warnings.add_metric([now.stage], len(now.warnings))
            yield warnings

    registry = CollectorRegistry()
    registry.register(BoardCollector())
    return registry
