"""Images by number: whatever the format, and wherever the files are, an index is always the same image.

So a keyed draw gives the same images to any number of processes. Files in a storage are fetched shard by shard, when an
image of the shard is first drawn; the images of each shard are counted once, and the counts are shared.
"""

import bisect
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.data.decoding import decode, in_threads
from dmd_trainer.data.files import Files, find_files
from dmd_trainer.data.formats import COUNTS, find_shards, is_known
from dmd_trainer.data.formats.digits import DigitsShard
from dmd_trainer.data.shard import Entry, Shard
from dmd_trainer.runtime.storage import Storage

Row = tuple[Tensor, int | None] | None
"""A sample [C, H, W] and its label; None where it does not decode."""
DIGITS = "builtin://digits"
CHECKED_SHARDS, CHECKED_IMAGES = 8, 1000
UNDECODABLE_SHARE, UNDECODABLE_LEAST = 0.01, 100
"""How many images may fail to decode: the larger of 1 % and 100."""


class ImageSet:
    """Images by global index, shard after shard; those that do not decode are counted and skipped.

    Args:
        location: where they are.
        field: the manifest's field, for messages.
        scratch: where remote files are copied to, and parquet files rewritten.
        shared: where the number of images of each shard is kept; None: counted every time.

    Raises:
        BadInputError: there are none, or the files are of no known format or of several.
    """

    def __init__(self, location: Location | None, field: str, scratch: Path, shared: Storage | None = None) -> None:
        if location is None:
            raise BadInputError(f"{field}: missing; give the URI of real images")
        self.field, self.uri = field, location.uri
        files, self._shards = _open(location.uri, field, scratch)
        self.identity = files.identity
        self._ends = list(accumulate(_counts(files, self._shards, shared)))
        self._bad: dict[int, str] = {}
        if not len(self):
            raise BadInputError(f"{field}: {self.uri}: no images there")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def labelled(self) -> bool:
        """Whether its images have labels: whether the first shard's have."""
        return self._shards[0].labelled

    @property
    def captioned(self) -> bool:
        """Whether its images have captions: whether the first shard's have."""
        return self._shards[0].captions is not None

    @property
    def bad(self) -> list[str]:
        """The names of the images that did not decode so far."""
        return list(self._bad.values())

    def entry(self, index: int) -> Entry:
        """The entry at a global index.

        Raises:
            BadInputError: its file cannot be read.
        """
        shard, row = self.place(index)
        try:
            return shard.entry(row)
        except IndexError as error:
            raise shard.unreadable(
                "it has fewer images than when they were counted: give changed files new names"
            ) from error

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of a global index, and the index in it."""
        number = bisect.bisect_right(self._ends, index)
        return self._shards[number], index - (self._ends[number - 1] if number else 0)

    def read(self, indices: Sequence[int], prepare: Callable[[Image.Image], Image.Image]) -> list[Row]:
        """The samples [C, H, W] at indices, pictures in [-1, 1], with their labels; None where one does not decode.

        Args:
            indices: global ones.
            prepare: brings a picture into the mode and size that is wanted.

        Raises:
            BadInputError: more images do not decode than are tolerated.
        """
        entries = [None if index in self._bad else self.entry(index) for index in indices]

        def sample(entry: Entry | None) -> Row:
            if entry is None:
                return None
            if isinstance(entry.content, Tensor):
                return entry.content, entry.label
            picture = decode(entry.content, prepare)
            return None if picture is None else (picture, entry.label)

        found = in_threads(sample, entries)
        for index, entry, row in zip(indices, entries, found, strict=True):
            if row is None and entry is not None:
                self._skip(index, entry.name)
        return found

    def _skip(self, index: int, name: str) -> None:
        self._bad[index] = name
        limit = min(max(UNDECODABLE_LEAST, int(UNDECODABLE_SHARE * len(self))), len(self) - 1)
        if len(self._bad) > limit:
            raise BadInputError(
                f"{self.field}: {self.uri}: of {len(self)} images at least {len(self._bad)} do not decode, among them "
                f"{', '.join(self.bad[:3])}; {limit} would be skipped: remove or replace them"
            )

    def spread(self) -> list[int]:
        """Up to 1,000 indices from up to 8 shards, evenly spread, for a check."""
        count = len(self._shards)
        numbers = sorted({i * count // CHECKED_SHARDS for i in range(CHECKED_SHARDS)})
        share = CHECKED_IMAGES // len(numbers)
        chosen: list[int] = []
        for number in numbers:
            start, end = (self._ends[number - 1] if number else 0), self._ends[number]
            chosen += sorted({start + i * (end - start) // share for i in range(share)} if end > start else ())
        return chosen


def _open(uri: str, field: str, scratch: Path) -> tuple[Files, Sequence[Shard]]:
    if uri == DIGITS:
        digits = Files(uri, (), lambda key: scratch / key, False, scratch, "digits")
        return digits, [DigitsShard(digits)]
    files = find_files(uri, scratch, is_known)
    return files, find_shards(files, field)


def _counts(files: Files, shards: Sequence[Shard], shared: Storage | None) -> list[int]:
    """How many images each shard has: as its folder says, as another run counted, or by reading all of them."""
    if not any(shard.counted_by_reading for shard in shards):
        return [shard.count() for shard in shards]
    if COUNTS in files.keys:
        known = json.loads(files.fetch(COUNTS).read_text())
        if all(shard.key in known for shard in shards):
            return [int(known[shard.key]) for shard in shards]
    key = f"cache/images-{files.identity}.json"
    if shared is not None and shared.exists(key):
        return [int(count) for count in json.loads(shared.read(key))]
    counts = []
    for number, shard in enumerate(shards):
        counts.append(shard.count())
        if files.remote and number:
            # Counting reads all shards, training on this node maybe not: what is drawn from is fetched again.
            files.fetch(shard.key).unlink()
    if shared is not None:
        shared.write(key, json.dumps(counts).encode())
    return counts
