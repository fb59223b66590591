"""Merges the lines of many workers' logs in the order of time."""

import asyncio
import heapq
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import typer

from dmd_api.labels import ATTEMPT, CONTAINER, INDEX, STAGE
from dmd_api.stages import Stage
from dmd_api.text import neutral

COLOURS = (
    "cyan",
    "green",
    "yellow",
    "magenta",
    "blue",
    "bright_cyan",
    "bright_green",
    "bright_yellow",
    "bright_magenta",
)
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)(?: |$)")
_ORDER = {stage: number for number, stage in enumerate(Stage)}


@dataclass(frozen=True)
class Worker:
    """A pod of an attempt.

    Attributes:
        stage: of which.
        attempt: its number, from 1.
        index: which of the attempt's workers it is.
        pod: its name; preparing's workers may have several, one after another.
        started: its container has run, so that there may be a log.
        over: its container writes no more.
        waiting: why it has not started, where that is known.
    """

    stage: Stage
    attempt: int
    index: int
    pod: str
    started: bool = False
    over: bool = False
    waiting: str = ""

    @property
    def age(self) -> tuple[int, int]:
        """Later attempts have a larger one."""
        return _ORDER[self.stage], self.attempt

    @property
    def attempt_name(self) -> str:
        """As its Job is named after the run."""
        return f"{self.stage}-{self.attempt}"

    @property
    def label(self) -> str:
        """The prefix of its lines."""
        return f"[{self.attempt_name}/{self.index}]"


@dataclass(frozen=True)
class Line:
    """A line of a worker's log.

    Attributes:
        at: when it was written, in nanoseconds since 1970.
    """

    at: int
    worker: Worker
    text: str


def worker_of(pod: Mapping[str, Any]) -> Worker | None:
    """The worker that `pod` is; None for pods of other kinds."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    try:
        stage, attempt, index = Stage(labels[STAGE]), int(labels[ATTEMPT]), int(labels.get(INDEX, 0))
    except (KeyError, ValueError):
        return None
    containers = status.get("containerStatuses") or []
    state = next((c.get("state") or {} for c in containers if c.get("name") == CONTAINER), {})
    over = "terminated" in state or status.get("phase") in {"Succeeded", "Failed"}
    waits: Mapping[str, Any] = state.get("waiting") or next(
        (c for c in status.get("conditions") or [] if c.get("type") == "PodScheduled" and c.get("status") == "False"),
        {},
    )
    waiting = ": ".join(part for part in (waits.get("reason"), waits.get("message")) if part)
    started = bool({"running", "terminated"} & state.keys())
    return Worker(stage, attempt, index, metadata["name"], started=started, over=over, waiting=waiting)


def latest(workers: Iterable[Worker], stage: Stage | None, attempt: int | None) -> list[Worker]:
    """The workers of the latest attempt that fits, in their order."""
    fit = [w for w in workers if stage in {None, w.stage} and attempt in {None, w.attempt}]
    newest = max((w.age for w in fit), default=None)
    return sorted((w for w in fit if w.age == newest), key=lambda w: (w.index, w.pod))


def parse_line(raw: str) -> tuple[int | None, str]:
    """The time that Kubernetes puts before each line, in nanoseconds, and the line; None where it put none."""
    found = _STAMP.match(raw)
    if found is None:
        return None, raw
    seconds, fraction, zone = found.groups()
    # A datetime ends at microseconds, and text of different lengths does not sort as time does.
    whole = int(datetime.fromisoformat(seconds + zone.replace("Z", "+00:00")).timestamp())
    return whole * 10**9 + int((fraction or "").ljust(9, "0")), raw[found.end() :]


async def in_order(streams: Sequence[AsyncIterator[Line]]) -> AsyncIterator[Line]:
    """All lines of streams that are each in order, in the order of time; holds one line of each."""
    firsts = await asyncio.gather(*(anext(stream, None) for stream in streams))
    heap = [(line.at, number, line) for number, line in enumerate(firsts) if line is not None]
    heapq.heapify(heap)
    while heap:
        _, number, line = heap[0]
        yield line
        following = await anext(streams[number], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following.at, number, following))


def format_line(line: Line, colour: bool) -> str:
    """The line with its worker's label before it, coloured as all of that worker's are."""
    label = line.worker.label
    if colour:
        label = typer.style(label, fg=COLOURS[line.worker.index % len(COLOURS)])
    return f"{label} {neutral(line.text)}\n"
