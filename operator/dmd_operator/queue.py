"""One queue for each run: its looks never overlap, and its errors back off alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from dmd_operator.seen import Key

FIRST_BACK_OFF = 0.5
LONGEST_BACK_OFF = 60.0


class Gone(Exception):  # noqa: N818 - no error: the end of a key
    """The resource is gone: there is nothing left to look at."""


class Queue:
    """Looks at a key whenever it is added, and when its last look asked for another.

    Args:
        look: looks at a key once, and says after which time to look again though nothing happens (None: not before
            something does). It gets the time, by `time.monotonic`, at which what it looks for happened.
        on_error: gets what `look` raised.
    """

    def __init__(
        self,
        look: Callable[[Key, float], Awaitable[timedelta | None]],
        on_error: Callable[[Key, Exception], None],
    ) -> None:
        self._look, self._on_error = look, on_error
        self._woken: dict[Key, asyncio.Event] = {}
        self._since: dict[Key, float] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def add(self, key: Key) -> None:
        """Something happened to `key`: it is looked at soon, once for all that happened until then."""
        self._since.setdefault(key, time.monotonic())
        self._woken.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._serve(key), name=f"{key.namespace}/{key.name}")

    def drop(self, key: Key) -> None:
        """Looks at `key` no more, until it is added again."""
        self._woken.pop(key, None)
        self._since.pop(key, None)
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        """Ends all looks; one that is applying its decision is cut short, and the next look completes it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, key: Key) -> None:
        woken, errors = self._woken[key], 0
        while True:
            woken.clear()
            since = self._since.pop(key, time.monotonic())
            try:
                again = await self._look(key, since)
            except Gone:
                if woken.is_set():
                    continue  # a new resource of the same name
                del self._woken[key], self._tasks[key]
                return
            except Exception as error:
                self._on_error(key, error)
                await asyncio.sleep(min(FIRST_BACK_OFF * 2 ** min(errors, 10), LONGEST_BACK_OFF))
                errors += 1
                continue
            errors = 0
            try:
                async with asyncio.timeout(None if again is None else max(again.total_seconds(), 0)):
                    await woken.wait()
            except TimeoutError:
                pass
