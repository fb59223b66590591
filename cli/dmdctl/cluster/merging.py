"""Several asynchronous sources as one."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
WAITING = 10_000
"""Items that may wait for the reader before their sources are held."""


class Merge(Generic[T]):
    """Items in the order in which they come; sources may join at any time. What a source raises, the reader gets."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[T | Exception] = asyncio.Queue(WAITING)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, source: AsyncIterator[T]) -> None:
        """Reads from `source` too, until it ends or all is left."""
        task = asyncio.create_task(self._read(source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def next(self) -> T:
        """The next item; waits for it."""
        return self._checked(await self._queue.get())

    async def batch(self, seconds: float) -> list[T]:
        """The next item, and all that come within so many seconds of it."""
        items = [await self.next()]
        await asyncio.sleep(seconds)
        while not self._queue.empty():
            items.append(self._checked(self._queue.get_nowait()))
        return items

    def _checked(self, item: T | Exception) -> T:
        if isinstance(item, Exception):
            raise item
        return item

    async def _read(self, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                await self._queue.put(item)
        except Exception as error:
            await self._queue.put(error)
