"""Images by number: whatever the format, and wherever the files are, an index is always the same image.

So a keyed draw gives the same images to any number of processes. Files in a storage are fetched shard by shard, when an
image of the shard is first drawn; the images of each shard are counted once, and the counts are shared.
"""

import bisect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.data.decoding import UndecodableError, decode, in_threads, to_tensor
from dmd_trainer.data.files import Files, find_files
from dmd_trainer.data.formats import COUNTS, find_shards, is_known
from dmd_trainer.data.formats.digits import DigitsShard
from dmd_trainer.data.formats.glyphs import SETS as GLYPHS
from dmd_trainer.data.formats.glyphs import GlyphsShard
from dmd_trainer.data.shard import Entry, Shard
from dmd_trainer.runtime.reading import reading
from dmd_trainer.runtime.storage import Storage

Row = tuple[Tensor, int | None] | None
"""A sample [C, H, W] and its label; None where it does not decode."""
WITHOUT_FILES: dict[str, Callable[[Files], Shard]] = {
    "builtin://digits": DigitsShard,
    **dict.fromkeys(GLYPHS, GlyphsShard),
}
CHECKED_SHARDS, CHECKED_IMAGES = 8, 1000
UNDECODABLE_SHARE, UNDECODABLE_LEAST = 0.01, 100
"""How many images may fail to decode: the larger of 1 % and 100."""
MAX_COUNT = 2**31
NAMED = 3
"""Files of each kind that a summary names."""


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
        self._files, self._shards = _open(location.uri, field, scratch)
        self._ends = list(accumulate(_counts(self._files, self._shards, shared)))
        self._bad: dict[int, tuple[str, str]] = {}  # the name, and why
        self._sizes: set[tuple[int, int]] = set()
        if not len(self):
            raise BadInputError(f"{field}: {self.uri}: no images there")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def identity(self) -> str:
        """A hash of what tells these images from others."""
        return self._files.identity

    @property
    def labelled(self) -> bool:
        """Whether its images have labels: whether the first shard's have."""
        return self._shards[0].labels is not None

    @property
    def captioned(self) -> bool:
        """Whether its images have captions: whether the first shard's have."""
        return self._shards[0].captions is not None

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in the order that numbered them; None where labels are numbers by themselves."""
        return self._shards[0].class_names

    @property
    def about_labels(self) -> str:
        """Where its labels come from, or why it has none, where there is something to say."""
        return self._shards[0].about_labels

    @property
    def bad(self) -> list[str]:
        """The names of the images that did not decode so far."""
        return [name for name, _ in self._bad.values()]

    def entry(self, index: int) -> Entry:
        """The entry at a global index.

        Raises:
            BadInputError: its file cannot be read.
        """
        shard, row = self.place(index)
        try:
            return shard.entry(row)
        except IndexError as error:
            raise BadInputError(
                f"{self.field}: {self.uri}: {shard.key} has fewer images than when they were counted; give changed "
                "files new names"
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
        wanted = [index for index in indices if index not in self._bad]
        entries = [self.entry(index) for index in wanted]

        def sample(entry: Entry) -> Tensor | UndecodableError:
            if isinstance(entry.content, Tensor):
                finite = entry.content.isfinite().all()
                return entry.content if finite else UndecodableError("its numbers are not finite")
            try:
                picture = decode(entry.content)
            except UndecodableError as error:
                return error
            self._sizes.add(picture.size)
            return to_tensor(prepare(picture))

        samples: dict[int, Tensor] = {}
        for index, entry, found in zip(wanted, entries, in_threads(sample, entries), strict=True):
            if isinstance(found, UndecodableError):
                self._skip(index, entry.name, str(found))
            else:
                samples[index] = found
        return [(samples[index], self._label(index)) if index in samples else None for index in indices]

    def _label(self, index: int) -> int | None:
        shard, row = self.place(index)
        return None if shard.labels is None else shard.labels[row]

    def _skip(self, index: int, name: str, reason: str) -> None:
        self._bad[index] = name, reason
        limit = min(max(UNDECODABLE_LEAST, int(UNDECODABLE_SHARE * len(self))), len(self) - 1)
        if len(self._bad) > limit:
            raise BadInputError(
                f"{self.field}: {self.uri}: of {len(self)} images at least {len(self._bad)} do not decode, among them "
                f"{self._named_bad()}; {limit} would be skipped: remove or replace them"
            )

    def _named_bad(self) -> str:
        return ", ".join(f"{name} ({reason})" for name, reason in list(self._bad.values())[:NAMED])

    def labels_looked_at(self) -> set[int | None]:
        """All labels of the shards that a check looks at, whether their images are looked at or not."""
        return {label for number in self._looked_at() for label in self._shards[number].labels or (None,)}

    def spread(self) -> list[int]:
        """Up to 1,000 indices from up to 8 shards, evenly spread, for a check."""
        numbers = self._looked_at()
        share = CHECKED_IMAGES // len(numbers)
        chosen: list[int] = []
        for number in numbers:
            start, end = (self._ends[number - 1] if number else 0), self._ends[number]
            chosen += sorted({start + i * (end - start) // share for i in range(share)} if end > start else ())
        return chosen

    def _looked_at(self) -> list[int]:
        """The numbers of the shards that a check looks at."""
        return sorted({i * len(self._shards) // CHECKED_SHARDS for i in range(CHECKED_SHARDS)})

    def summary(self, labels: Sequence[int] = (), *, captions: bool = False) -> str:
        """What was found, in a line: images, files, sizes, labels, captions, and what was left out and why.

        Args:
            labels: those of the images that were looked at.
            captions: whether captions are of interest.
        """
        kinds = Counter(PurePosixPath(key).suffix.lower() for key in self._files.keys)
        files = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        found = [f"{len(self):,} images" + (f" in {files} files" if files else "")]
        if self._sizes:
            widths, heights = ([size[axis] for size in self._sizes] for axis in (0, 1))
            least, most = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
            found.append(least if least == most else f"{least} to {most} pixels")
        if self.about_labels:
            found.append(self.about_labels)
        if (names := self.class_names) is not None:
            found.append(f"{len(names):,} classes ({_some(names)})")
        elif labels:
            found.append(f"classes {min(labels)} to {max(labels)}")
        shards = [self._shards[number] for number in self._looked_at()]
        if captions:
            texts = [text for shard in shards for text in shard.captions or [""] * shard.count()]
            captioned = sum(map(bool, texts))
            found.append(
                f"{captioned:,} of {len(texts):,} captioned" + (" (looked at)" if len(texts) < len(self) else "")
            )
        found += [note for shard in shards[:NAMED] for note in shard.notes]
        if left_out := self._files.left_out:
            found.append(f"{len(left_out):,} other files left out: {_some(left_out)}")
        if self._bad:
            found.append(f"{len(self._bad):,} do not decode: {self._named_bad()}")
        return f"{self.field}: {self.uri}: {'; '.join(found)}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"


def _open(uri: str, field: str, scratch: Path) -> tuple[Files, Sequence[Shard]]:
    if (kind := WITHOUT_FILES.get(uri)) is not None:
        none = Files(uri, (), lambda key: scratch / key, False, scratch, uri.removeprefix("builtin://"), field)
        return none, [kind(none)]
    files = find_files(uri, scratch, is_known, field)
    return files, find_shards(files)


def _counts(files: Files, shards: Sequence[Shard], shared: Storage | None) -> list[int]:
    """How many images each shard has: as its folder says, as another run counted, or by reading all of them."""
    if not any(shard.counted_by_reading for shard in shards):
        return [shard.count() for shard in shards]
    said = _said_counts(files)
    if all(shard.key in said for shard in shards):
        return [said[shard.key] for shard in shards]
    key = f"cache/images-{files.identity}.json"
    if (kept := _kept_counts(shared, key)) is not None and len(kept) == len(shards):
        return kept
    counts = []
    for number, shard in enumerate(shards):
        counts.append(shard.count())
        if files.remote and number:
            # Counting reads all shards, training on this node maybe not: what is drawn from is fetched again.
            files.fetch(shard.key).unlink()
    if shared is not None:
        shared.write(key, json.dumps(counts).encode())
    return counts


def _kept_counts(shared: Storage | None, key: str) -> list[int] | None:
    """The counts that another run left; None where there are none, or they were damaged since."""
    if shared is None or not shared.exists(key):
        return None
    try:
        kept = json.loads(shared.read(key))
    except (ValueError, RecursionError):
        return None
    return kept if isinstance(kept, list) and all(_is_count(count) for count in kept) else None


def _said_counts(files: Files) -> dict[str, int]:
    """The numbers of samples in webdataset's files, each of which speaks of the shards beside it."""
    said: dict[str, int] = {}
    for key in files.keys:
        folder, slash, name = key.rpartition("/")
        if name != COUNTS:
            continue
        with reading(files.where(key), "correct or remove it"):
            content = json.loads(files.fetch(key).read_bytes())
            if not isinstance(content, dict) or not all(_is_count(count) for count in content.values()):
                raise ValueError("it is no object of numbers by name")
            said |= {f"{folder}{slash}{shard}": count for shard, count in content.items()}
    return said


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT
