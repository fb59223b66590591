"""WebDataset's tars: files that share a name up to its first dot make a sample."""

import gzip
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from dmd_trainer.conditions.tables import expanded_limit
from dmd_trainer.conditions.texts import text_column, texts_in
from dmd_trainer.data.formats.folder import PICTURES
from dmd_trainer.data.shard import MAX_BESIDE, MAX_PICTURE, Entry, Shard, one_caption
from dmd_trainer.runtime.reading import is_left_out, replaced

BLOCK = tarfile.BLOCKSIZE
GZIP = b"\x1f\x8b"


class _TarIndex(NamedTuple):
    """Where a tar's pictures begin, how long they are, and what goes with them; sorted as the tar is."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int] | None
    captions: list[str] | None
    left_out: Counter[str]


class Tar(Shard):
    """A webdataset tar, plain or by gzip: a sample is its picture, and maybe `.cls`, and `.txt` or `.json`.

    A name's part up to the first dot is the sample's key, folders included; what follows is the suffix: `0.depth.png`
    is a `.depth.png`, and no picture.
    """

    suffixes = (".tar", ".tar.gz", ".tgz")

    @cached_property
    def _plain(self) -> Path:
        """The tar; of a compressed one a copy that is not, since only in that pictures have places."""
        path = self.files.fetch(self.key)
        with path.open("rb") as file:
            if file.read(2) != GZIP:
                return path
        plain = self.files.scratch / f"{self.key}.plain"
        if not plain.exists():
            with replaced(plain) as sink, gzip.open(path) as source:
                left = limit = expanded_limit(path.stat().st_size)
                while chunk := source.read(2**20):
                    left -= len(chunk)
                    if left < 0:
                        raise ValueError(f"it expands to more than {limit:,} bytes")
                    sink.write(chunk)
        return plain

    @cached_property
    def _index(self) -> _TarIndex:
        with self.reading():
            return self._read()

    def _read(self) -> _TarIndex:
        places: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        texts: dict[str, str] = {}
        described: dict[str, str] = {}
        others: Counter[str] = Counter()
        with tarfile.open(self._plain, "r:") as tar:
            for key, suffix, member in _members(tar, others):
                if suffix in PICTURES:
                    if key in places:
                        raise ValueError(f"{key} has a second picture, {member.name}: samples need names of their own")
                    if member.size > MAX_PICTURE:
                        raise ValueError(f"{member.name} has {member.size:,} bytes; no picture is so large")
                    places[key] = (member.offset_data, member.size)
                elif suffix == ".cls":
                    labels[key] = _class(_content(tar, member), member)
                elif suffix == ".txt":
                    texts[key] = _caption(_content(tar, member), member)
                elif suffix == ".json":
                    described[key] = _described(_content(tar, member), member)
                else:
                    others[f"*{suffix}"] += 1
            _check_end(tar)
        captions = described | texts
        if not places:
            found = ", ".join(kind for kind, _ in others.most_common(5)) or "nothing"
            raise ValueError(
                f"no name in it ends, after its first dot, in {', '.join(PICTURES)}, but in {found}: rename the files"
            )
        if labels and not places.keys() <= labels.keys():
            raise ValueError(f"{next(key for key in places if key not in labels)} has no .cls, others have")
        offsets, sizes = np.array(list(places.values()), dtype=np.int64).T
        if pictureless := len((labels.keys() | captions.keys()) - places.keys()):
            others["samples without a picture"] = pictureless
        return _TarIndex(
            offsets,
            sizes,
            [labels[key] for key in places] if labels else None,
            [captions.get(key, "") for key in places] if any(captions.values()) else None,
            others,
        )

    def count(self) -> int:
        return len(self._index.offsets)

    @cached_property
    def labels(self) -> list[int] | None:
        return self._index.labels

    @cached_property
    def captions(self) -> list[str] | None:
        return self._index.captions

    @property
    def notes(self) -> list[str]:
        return [f"{count} {kind} in {self.key} not used" for kind, count in self._index.left_out.most_common(5)]

    def entry(self, index: int) -> Entry:
        offset, size = int(self._index.offsets[index]), int(self._index.sizes[index])
        with self.reading(), self._plain.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        return Entry(f"{self.key}, image {index}", content)


def _members(tar: tarfile.TarFile, others: Counter[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix and header of the members that are files with a suffix; the rest is counted in `others`."""
    for member in tar:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, suffix = name.partition(".")
        if member.isdir():
            continue
        if is_left_out(member.name):
            others["hidden files"] += 1
        elif not member.isreg():
            others["links and devices"] += 1
        elif member.issparse():
            raise ValueError(f"{member.name} is stored as a sparse file: pack it without --sparse")
        elif not dot:
            others["files without a suffix"] += 1
        else:
            yield f"{folder}{slash}{stem}", f".{suffix.lower()}", member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_BESIDE:
        raise ValueError(f"{member.name} has {member.size:,} bytes; no text is so long")
    file: IO[bytes] | None = tar.extractfile(member)
    return b"" if file is None else file.read()


def _class(content: bytes, member: tarfile.TarInfo) -> int:
    try:
        return int(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{member.name} holds no number") from error


def _caption(content: object, member: tarfile.TarInfo) -> str:
    try:
        return one_caption(texts_in(content), member.name)
    except ValueError as error:
        raise ValueError(f"{member.name}: {error}") from error


def _described(content: bytes, member: tarfile.TarInfo) -> str:
    """The caption in a sample's .json, as img2dataset writes it; "" where it has none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{member.name}: {error}") from error
    column = text_column(list(values)) if isinstance(values, dict) else None
    return "" if column is None else _caption(values[column], member)


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuses a tar whose end is missing or lies before other files: the library stops there without a word.

    Raises:
        ValueError: it is truncated, damaged in the middle, or several tars behind each other.
    """
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    end = file.read(BLOCK)
    if end != bytes(BLOCK):
        raise ValueError(f"it is truncated, or damaged at byte {tar.offset:,}")
    while chunk := file.read(2**20):
        if chunk.strip(b"\0"):
            raise ValueError(f"there is more behind its end at byte {tar.offset:,}: pack it again")
