"""Draws what waits in batches, on a thread of its own, and drops what nobody waits for any more"""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from dmdctl.serving.metrics import Metrics
from dmdctl.serving.wanted import Task

LOOK_SECONDS = 0.05
"""Between two looks at whether somebody still waits for what is being drawn."""


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what they cost.

    Attributes:
        images: (PIL) in the order of the task's seeds.
        evaluations: how often the network was evaluated for each picture.
        milliseconds: that the batch took which they were drawn in.
    """

    images: Sequence[Any]
    evaluations: int
    milliseconds: float


class Sampler(Protocol):
    """Draws on the thread of a queue."""

    def draw(self, task: Task, gone: threading.Event) -> tuple[Sequence[Any], int]:
        """Images (PIL), and network evaluations for each; may raise `GoneError` once `gone` is set."""


class BusyError(Exception):
    """So many pictures wait already that this request would have to wait too long.

    Args:
        seconds: after which another try may succeed.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many pictures are waiting; try again in {seconds} s")
        self.seconds = seconds


class GoneError(Exception):
    """The client has gone, so that nothing was drawn."""


@dataclass(frozen=True)
class _Waiting:
    sampler: Sampler
    task: Task
    is_gone: Callable[[], Awaitable[bool]]
    drawn: asyncio.Future[Drawn]


class Queue:
    """What waits for one thread that draws.

    Args:
        name: in the metrics.
        batch_size: at most so many pictures are drawn at once, except those of one request.
        limit: at most so many pictures wait.
        metrics: what is counted.
        pause: called with True when something begins to wait, with False when nothing waits or is drawn.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        limit: int,
        metrics: Metrics,
        pause: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._name, self._batch_size, self._limit, self._pause = name, batch_size, limit, pause
        self._metrics = metrics
        self._waiting: list[_Waiting] = []
        self._something = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"draw-{name}")
        self._seconds_per_image = 0.1
        metrics.waiting.labels(name).set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return sum(len(one.task) for one in self._waiting)

    async def draw(self, sampler: Sampler, task: Task, is_gone: Callable[[], Awaitable[bool]]) -> Drawn:
        """Draws when its turn comes, with what waits for the same sampler and the same number of steps.

        Raises:
            BusyError: too much waits.
            GoneError: nobody waits for the pictures any more.
        """
        if self.waiting + len(task) > self._limit:
            raise BusyError(max(1, math.ceil(self.waiting * self._seconds_per_image)))
        one = _Waiting(sampler, task, is_gone, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._pause(True)
        self._something.set()
        return await one.drawn

    async def run(self) -> None:
        """Draws until it is cancelled."""
        while True:
            if not self._waiting:
                self._something.clear()
                self._pause(False)
                await self._something.wait()
            if batch := await self._next():
                await self._draw(batch)

    async def _next(self) -> list[_Waiting]:
        """The oldest that somebody waits for, and what fits in a batch with it."""
        here = self._waiting.copy()
        for one in here:
            if one.drawn.done() or await one.is_gone():
                self._waiting.remove(one)
                self._metrics.dropped.labels(self._name).inc()
                if not one.drawn.done():
                    one.drawn.set_exception(GoneError())
        batch: list[_Waiting] = []
        for one in self._waiting.copy():
            fits = sum(len(other.task) for other in batch) + len(one.task) <= self._batch_size
            alike = batch and (one.sampler, one.task.steps) == (batch[0].sampler, batch[0].task.steps)
            if not batch or (alike and fits):
                batch.append(one)
                self._waiting.remove(one)
        return batch

    async def _draw(self, batch: list[_Waiting]) -> None:
        first = batch[0]
        together = Task(
            [seed for one in batch for seed in one.task.seeds],
            None if first.task.labels is None else [label for one in batch for label in one.task.labels or ()],
            None if first.task.prompts is None else [prompt for one in batch for prompt in one.task.prompts or ()],
            first.task.steps,
        )
        gone = threading.Event()
        looking = asyncio.create_task(_look(batch, gone))
        try:
            images, evaluations, seconds = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._draw_in_parts, first.sampler, together, gone
            )
        except Exception as error:  # of any library: it is the answer to these requests, and the next are drawn
            for one in batch:
                if not one.drawn.done():
                    one.drawn.set_exception(error)
            return
        finally:
            looking.cancel()
        self._seconds_per_image = seconds / len(together)
        self._metrics.images.labels(self._name).inc(len(together))
        self._metrics.batch.labels(self._name).observe(len(together))
        self._metrics.draw_seconds.labels(self._name).observe(seconds)
        for one in batch:
            own, images = images[: len(one.task)], images[len(one.task) :]
            if not one.drawn.done():
                one.drawn.set_result(Drawn(own, evaluations, 1000 * seconds))

    def _draw_in_parts(self, sampler: Sampler, task: Task, gone: threading.Event) -> tuple[list[Any], int, float]:
        began = time.perf_counter()
        images: list[Any] = []
        evaluations = 0
        for start in range(0, len(task), self._batch_size):
            found, evaluations = sampler.draw(task.part(start, start + self._batch_size), gone)
            images += found
        return images, evaluations, time.perf_counter() - began


async def _look(batch: Sequence[_Waiting], gone: threading.Event) -> None:
    """Says when nobody waits for a batch any more."""
    while not gone.is_set():
        await asyncio.sleep(LOOK_SECONDS)
        if all([await one.is_gone() for one in batch]):
            gone.set()
