"""The operator's own metrics, for Prometheus."""

from collections import Counter as Count
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dmd_operator.seen import Seen

DECISION_SECONDS = Histogram(
    "dmd_operator_decision_seconds",
    "From the first event that a decision follows from to its being applied, for decisions that change something.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
LOOKS = Counter("dmd_operator_looks_total", "Looks at a run, by whether they changed anything.", ["acted"])
ERRORS = Counter("dmd_operator_errors_total", "Looks at a run that failed and are repeated.", ["reason"])
API_REQUESTS = Counter("dmd_operator_api_requests_total", "Requests to the API server.", ["verb", "code"])


class Distillations(Collector):
    """The number of distillations in each phase, counted when asked.

    Args:
        seen: the cache of all runs.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge."""
        gauge = GaugeMetricFamily("dmd_operator_distillations", "Distillations by phase.", labels=["phase"])
        phases = Count((r.get("status") or {}).get("phase", "Pending") for r in self._seen.resources())
        for phase, count in phases.items():
            gauge.add_metric([phase], count)
        yield gauge


def count_requests() -> aiohttp.TraceConfig:
    """Counts a client's requests by their verb and answer."""
    trace = aiohttp.TraceConfig()

    async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams) -> None:
        API_REQUESTS.labels(request.method, str(request.response.status)).inc()

    async def failed(_: Any, __: SimpleNamespace, request: aiohttp.TraceRequestExceptionParams) -> None:
        API_REQUESTS.labels(request.method, type(request.exception).__name__).inc()

    trace.on_request_end.append(answered)
    trace.on_request_exception.append(failed)
    return trace
