"""Records in a file, in their order, and how many of them have been sent."""

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dmd_api.paths import below

Record = dict[str, Any]
"""JSON values: `kind`, `time` in milliseconds since the epoch, and what the kind needs."""


class Spool:
    """A queue of records that outlives its process: any thread appends, one thread sends.

    Args:
        folder: a local folder of one run; records that an earlier process left there are still in the queue.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._records, self._position = folder / "records.jsonl", folder / "position"
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._sent = threading.Condition()
        self._drop_half_a_line()

    def append(self, kind: str, **fields: Any) -> None:
        """Adds a record with the present time."""
        self.append_records([{"kind": kind, **fields, "time": int(time.time() * 1000)}])

    def append_records(self, records: Iterable[Record]) -> None:
        """Adds records with the times that they have."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with self._lock, self._records.open("ab") as file:
            file.write(lines.encode())
        self._news.set()

    def keep(self, content: bytes) -> str:
        """Writes a file that a record names; returns its name."""
        name = f"{uuid.uuid4().hex}.bin"
        (self._folder / name).write_bytes(content)
        return name

    def kept(self, name: str) -> Path:
        """The file that a record names.

        Raises:
            BadInputError: it is not in the spool's folder.
        """
        return below(self._folder, name, str(self._records))

    def unsent(self) -> list[Record]:
        """The records that have not been sent."""
        return [record for record, _ in self.read()]

    def read(self) -> Iterator[tuple[Record, int]]:
        """The records that have not been sent, each with what `mark_sent` takes once it has."""
        offset = int(self._position.read_text() or 0) if self._position.exists() else 0
        with self._lock, self._records.open("rb") as file:
            file.seek(offset)
            content = file.read()
        for line in content.splitlines(keepends=True):
            offset += len(line)
            yield json.loads(line), offset

    def mark_sent(self, offset: int) -> None:
        """Notes that all records up to here have been sent."""
        partial = self._position.with_suffix(".partial")
        partial.write_text(str(offset))
        partial.replace(self._position)
        with self._sent:
            self._sent.notify_all()

    def wait_until_sent(self, timeout: float) -> bool:
        """Waits until nothing is unsent, at most `timeout` seconds; returns whether nothing is."""
        with self._sent:
            return self._sent.wait_for(lambda: not self.unsent(), timeout)

    def wait_for_news(self) -> None:
        """Waits until a record was added, or `wake` called, since the last `clear_news`."""
        self._news.wait()

    def clear_news(self) -> None:
        """Makes `wait_for_news` wait for what comes after this."""
        self._news.clear()

    def wake(self) -> None:
        """Ends a `wait_for_news`."""
        self._news.set()

    def _drop_half_a_line(self) -> None:
        """Cuts off a record that a process died while writing: the next one would be joined to it."""
        self._records.touch()
        with self._records.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
