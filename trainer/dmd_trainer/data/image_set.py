"""Real images by number: from folders, parquet, webdataset tars or safetensors, on disk or in a storage.

Every image has a global index, so that a keyed draw gives the same image to any number of processes. What lies in a
storage is fetched shard by shard, when an image of the shard is first drawn; how many images each shard holds is
counted once and shared.
"""

import bisect
import hashlib
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.manifest import Location
from dmd_trainer.conditions.prompts import COLUMNS
from dmd_trainer.data.digits import load_digits_images
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import Storage, open_storage

Row = tuple[Tensor, int | None] | None
"""A sample [C, H, W] and its label; None where it does not decode."""
T = TypeVar("T")
R = TypeVar("R")
DIGITS, EMOJI = "builtin://digits", "builtin://emoji"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHARDS = (".parquet", ".tar", ".safetensors")
LABEL_COLUMNS = ("label", "class", "class_labels")
CAPTIONS = "metadata.jsonl"
"""Hugging Face's name for what is known of a folder's pictures: lines of {"file_name": "a.png", "text": "a tree"}."""
COUNTS = "sizes.json"
"""Webdataset's name for the number of samples of each shard: {"a.tar": 1000}; with it no shard is read to count."""
ROWS_AT_ONCE = 64
"""Rows of a parquet file's local copy that lie together: what one random access maps."""
CHECKED_SHARDS, CHECKED_IMAGES = 8, 1000
UNDECODABLE_SHARE, UNDECODABLE_LEAST = 0.01, 100
"""How many images may fail to decode: the larger of 1 % and 100."""


@dataclass(frozen=True)
class Entry:
    """What a source has at an index.

    Attributes:
        name: for messages.
        content: a picture file's bytes, or a float tensor [C, H, W].
        label: its class, where it has one.
    """

    name: str
    content: bytes | Tensor
    label: int | None


@dataclass(frozen=True)
class Files:
    """Where a source's files lie.

    Attributes:
        uri: what the manifest calls the place.
        keys: the files' names below it, sorted.
        fetch: the local path of a file, which is downloaded where it is missing.
        remote: whether `fetch` downloads.
        scratch: a local folder for copies.
        identity: what tells these files from others.
    """

    uri: str
    keys: tuple[str, ...]
    fetch: Callable[[str], Path]
    remote: bool
    scratch: Path
    identity: str


class Shard(ABC):
    """A part of a source; nothing is read before it is asked for.

    Args:
        files: the source's.
        key: which of them.
    """

    def __init__(self, files: Files, key: str) -> None:
        self.files, self.key = files, key

    @abstractmethod
    def count(self) -> int:
        """How many entries it has, by reading it."""

    @property
    @abstractmethod
    def labelled(self) -> bool:
        """Whether its entries have labels."""

    @cached_property
    def captions(self) -> list[str] | None:
        """What its entries show, in words, "" where one has none; None where it has no captions."""
        return None

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """The entry at an index of its own."""

    def refuse(self, reason: object) -> BadInputError:
        """What to raise when the file cannot be used."""
        return BadInputError(f"{self.files.uri}: {self.key} cannot be read ({reason}); replace or remove it")


class ParquetShard(Shard):
    """A parquet file: `image` (bytes, or Hugging Face's {bytes, path}), and maybe columns of labels and captions.

    Parquet has no access to single rows: on first use it is rewritten as an Arrow file, which is mapped.
    """

    @cached_property
    def _arrow(self) -> Path:
        path = self.files.scratch / f"{self.key}.arrow"
        if not path.exists():
            self._rewrite(path)
        return path

    def _rewrite(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        schema = pa.schema({"image": pa.large_binary(), "label": pa.int64()})
        try:
            with pq.ParquetFile(self.files.fetch(self.key)) as source:
                label = self._label_column(source.schema_arrow)
                columns = ["image", label] if label else ["image"]
                with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
                    for batch in source.iter_batches(ROWS_AT_ONCE, columns=columns):
                        images = batch.column("image")
                        if pa.types.is_struct(images.type):
                            images = images.field("bytes")
                        labels = batch.column(label).cast(pa.int64()) if label else pa.nulls(len(batch), pa.int64())
                        rows = pa.record_batch([images.cast(pa.large_binary()), labels], schema=schema)
                        out.write_batch(rows)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise self.refuse(error) from error
        partial.replace(path)

    def _label_column(self, schema: Any) -> str | None:
        import pyarrow as pa

        if "image" not in schema.names:
            raise BadInputError(
                f"{self.files.uri}: {self.key} has no column image (it has {', '.join(schema.names)}); rename its own"
            )
        found = [n for n in LABEL_COLUMNS if n in schema.names and pa.types.is_integer(schema.field(n).type)]
        return found[0] if found else None

    def count(self) -> int:
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(self.files.fetch(self.key)).num_rows)
        except (OSError, ValueError) as error:
            raise self.refuse(error) from error

    @cached_property
    def labelled(self) -> bool:
        import pyarrow.parquet as pq

        try:
            return self._label_column(pq.read_schema(self.files.fetch(self.key))) is not None
        except (OSError, ValueError) as error:
            raise self.refuse(error) from error

    @cached_property
    def captions(self) -> list[str] | None:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.files.fetch(self.key)) as source:
                found = [name for name in COLUMNS if name in source.schema_arrow.names]
                if not found:
                    return None
                return [str(value or "") for value in source.read(found[:1]).column(0).to_pylist()]
        except (OSError, ValueError) as error:
            raise self.refuse(error) from error

    def entry(self, index: int) -> Entry:
        import pyarrow as pa

        # Opened anew each time: of thousands of shards each would hold a file open.
        with pa.memory_map(str(self._arrow)) as source:
            batch = pa.ipc.open_file(source).get_batch(index // ROWS_AT_ONCE)
            row = index % ROWS_AT_ONCE
            image, label = batch.column("image")[row].as_py(), batch.column("label")[row].as_py()
        # A row without bytes is one that does not decode.
        return Entry(f"{self.key}, row {index}", image or b"", label)


class _TarIndex(NamedTuple):
    """Where a tar's pictures begin, how long they are, and what goes with them; sorted as the tar is."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int] | None
    captions: list[str] | None


class TarShard(Shard):
    """A webdataset tar: files of one name without suffixes are a sample: its picture, and maybe `.cls` and `.txt`."""

    @cached_property
    def _index(self) -> _TarIndex:
        places: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        captions: dict[str, str] = {}
        try:
            with tarfile.open(self.files.fetch(self.key)) as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    stem, suffix = str(path.parent / path.name.split(".", 1)[0]), path.suffix.lower()
                    if not member.isfile():
                        continue
                    if suffix in PICTURES:
                        places.setdefault(stem, (member.offset_data, member.size))
                    elif suffix == ".cls":
                        content = tar.extractfile(member)
                        labels[stem] = int(content.read()) if content else -1
                    elif suffix == ".txt":
                        content = tar.extractfile(member)
                        captions[stem] = content.read().decode(errors="replace").strip() if content else ""
        except (OSError, ValueError, tarfile.TarError) as error:
            raise self.refuse(error) from error
        if not places:
            raise self.refuse(f"there are no {', '.join(PICTURES)} in it")
        offsets, sizes = np.array(list(places.values()), dtype=np.int64).T
        if labels and not places.keys() <= labels.keys():
            raise self.refuse(f"{next(iter(places.keys() - labels.keys()))} has no .cls, others have")
        return _TarIndex(
            offsets,
            sizes,
            [labels[stem] for stem in places] if labels else None,
            [captions.get(stem, "") for stem in places] if captions else None,
        )

    def count(self) -> int:
        return len(self._index.offsets)

    @property
    def labelled(self) -> bool:
        return self._index.labels is not None

    @cached_property
    def captions(self) -> list[str] | None:
        return self._index.captions

    def entry(self, index: int) -> Entry:
        offsets, sizes, labels, _ = self._index
        with self.files.fetch(self.key).open("rb") as file:
            file.seek(int(offsets[index]))
            content = file.read(int(sizes[index]))
        return Entry(f"{self.key}, image {index}", content, None if labels is None else labels[index])


class TensorShard(Shard):
    """A safetensors file: `latents` or `images` [N, C, H, W], maybe `class_labels` [N], and captions in its metadata.

    The metadata's `captions` is a JSON list of N texts.
    """

    @cached_property
    def _layout(self) -> tuple[str, int, bool]:
        """The key of its samples, how many there are, and whether it has labels."""
        try:
            with safe_open(self.files.fetch(self.key), framework="pt") as file:
                keys = set(file.keys())
                found = [key for key in ("latents", "images") if key in keys]
                if not found:
                    raise self.refuse(f"it has neither latents nor images, but {', '.join(sorted(keys))}")
                samples = file.get_slice(found[0])
                shape, kind = samples.get_shape(), samples.get_dtype()
        except (OSError, SafetensorError) as error:
            raise self.refuse(error) from error
        if len(shape) != 4 or not kind.startswith(("F", "BF")):
            raise self.refuse(f"{found[0]} is {kind} {shape}, not floats [N, C, H, W]")
        return found[0], int(shape[0]), "class_labels" in keys

    def count(self) -> int:
        return self._layout[1]

    @property
    def labelled(self) -> bool:
        return self._layout[2]

    @cached_property
    def captions(self) -> list[str] | None:
        try:
            with safe_open(self.files.fetch(self.key), framework="pt") as file:
                content = (file.metadata() or {}).get("captions")
            if content is None:
                return None
            captions = [str(caption) for caption in json.loads(content)]
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise self.refuse(error) from error
        if len(captions) != self.count():
            raise self.refuse(f"it has {len(captions)} captions for {self.count()} samples")
        return captions

    def entry(self, index: int) -> Entry:
        key, _, labelled = self._layout
        with safe_open(self.files.fetch(self.key), framework="pt") as file:
            sample = file.get_slice(key)[index : index + 1][0].float()
            label = int(file.get_slice("class_labels")[index : index + 1][0]) if labelled else None
        return Entry(f"{self.key}, sample {index}", sample, label)


class PictureShard(Shard):
    """All picture files of a folder; with a folder for each class, classes are numbered as the folders are sorted.

    Captions are those of `metadata.jsonl`.

    Args:
        files: the source's.
        keys: the pictures.
    """

    def __init__(self, files: Files, keys: Sequence[str]) -> None:
        super().__init__(files, "pictures")
        self._keys = keys
        folders = {key.split("/")[0] for key in keys if "/" in key}
        in_folders = all("/" in key for key in keys)
        self._classes = {name: number for number, name in enumerate(sorted(folders))} if in_folders else {}

    def count(self) -> int:
        return len(self._keys)

    @property
    def labelled(self) -> bool:
        return bool(self._classes)

    @cached_property
    def captions(self) -> list[str] | None:
        if CAPTIONS not in self.files.keys:
            return None
        known: dict[str, str] = {}
        try:
            for line in self.files.fetch(CAPTIONS).read_text(encoding="utf-8").splitlines():
                row = json.loads(line) if line.strip() else {}
                for name in (name for name in COLUMNS if name in row):
                    known[row["file_name"]] = str(row[name] or "")
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise BadInputError(f"{self.files.uri}: {CAPTIONS} cannot be read ({reason})") from error
        return [known.get(key, "") for key in self._keys] if known else None

    def entry(self, index: int) -> Entry:
        key = self._keys[index]
        try:
            content = self.files.fetch(key).read_bytes()
        except OSError as error:
            raise BadInputError(f"{self.files.uri}: {key} cannot be read ({error.strerror or error})") from error
        return Entry(key, content, self._classes.get(key.split("/")[0]))


class DigitsShard(Shard):
    """scikit-learn's digits."""

    @cached_property
    def _digits(self) -> tuple[Tensor, Tensor]:
        return load_digits_images()

    def count(self) -> int:
        return len(self._digits[0])

    @property
    def labelled(self) -> bool:
        return True

    def entry(self, index: int) -> Entry:
        images, labels = self._digits
        return Entry(f"digit {index}", images[index], int(labels[index]))


class ImageSet:
    """Images by global index, shard after shard; those that do not decode are counted and passed over.

    Args:
        location: where they are.
        field: the manifest's field, for messages.
        scratch: where remote files are copied to, and parquet files rewritten.
        shared: where the number of images of each shard is kept; None: counted every time.

    Raises:
        BadInputError: there are none, or the files are of no kind or of several kinds known here.
    """

    def __init__(self, location: Location | None, field: str, scratch: Path, shared: Storage | None = None) -> None:
        if location is None:
            raise BadInputError(f"{field}: missing; give the URI of real images")
        self.field, self.uri = field, location.uri
        files = _files(location.uri, scratch)
        self.identity = files.identity
        self._shards = _shards(files, field)
        counts = self._counts(files, shared)
        self._ends = list(accumulate(counts))
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

    def _counts(self, files: Files, shared: Storage | None) -> list[int]:
        if isinstance(self._shards[0], PictureShard | DigitsShard):
            return [self._shards[0].count()]
        if COUNTS in files.keys:
            known = json.loads(files.fetch(COUNTS).read_text())
            if all(shard.key in known for shard in self._shards):
                return [int(known[shard.key]) for shard in self._shards]
        key = f"cache/images-{files.identity}.json"
        if shared is not None and shared.exists(key):
            return [int(count) for count in json.loads(shared.read(key))]
        counts = []
        for shard in self._shards:
            counts.append(shard.count())
            if files.remote and shard is not self._shards[0] and isinstance(shard, ParquetShard | TarShard):
                # Counting reads all shards, training on this node maybe not: what is drawn from is fetched again.
                files.fetch(shard.key).unlink()
        if shared is not None:
            shared.write(key, json.dumps(counts).encode())
        return counts

    def entry(self, index: int) -> Entry:
        """What is at a global index.

        Raises:
            BadInputError: its file cannot be read.
        """
        shard, row = self.place(index)
        try:
            return shard.entry(row)
        except IndexError as error:
            raise shard.refuse(
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
            BadInputError: more do not decode than is let pass.
        """
        entries = [None if index in self._bad else self.entry(index) for index in indices]

        def decode(entry: Entry | None) -> Row:
            if entry is None:
                return None
            if isinstance(entry.content, Tensor):
                return entry.content, entry.label
            picture = _decode(entry.content, prepare)
            return None if picture is None else (picture, entry.label)

        found = in_threads(decode, entries)
        for index, entry, sample in zip(indices, entries, found, strict=True):
            if sample is None and entry is not None:
                self._pass_over(index, entry.name)
        return found

    def _pass_over(self, index: int, name: str) -> None:
        self._bad[index] = name
        limit = min(max(UNDECODABLE_LEAST, int(UNDECODABLE_SHARE * len(self))), len(self) - 1)
        if len(self._bad) > limit:
            raise BadInputError(
                f"{self.field}: {self.uri}: of {len(self)} images at least {len(self._bad)} do not decode, among them "
                f"{', '.join(self.bad[:3])}; {limit} would be passed over: remove or replace them"
            )

    def spread(self) -> list[int]:
        """Up to 1,000 indices from up to 8 shards, evenly spread: what a check looks at."""
        count = len(self._shards)
        numbers = sorted({i * count // CHECKED_SHARDS for i in range(CHECKED_SHARDS)})
        share = CHECKED_IMAGES // len(numbers)
        chosen: list[int] = []
        for number in numbers:
            start, end = (self._ends[number - 1] if number else 0), self._ends[number]
            chosen += sorted({start + i * (end - start) // share for i in range(share)} if end > start else ())
        return chosen


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order; PIL decodes and resizes without Python's lock."""
    return list(_pool().map(function, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [C, H, W], float32, in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return (pixels.float() / 127.5 - 1).contiguous()


def _decode(content: bytes, prepare: Callable[[Image.Image], Image.Image]) -> Tensor | None:
    try:
        with Image.open(BytesIO(content)) as picture:
            return to_tensor(prepare(picture))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        # What PIL's plugins raise at damaged files; SyntaxError is its word for a broken PNG.
        return None


def _files(uri: str, scratch: Path) -> Files:
    """The files at a URI: those of a folder, or one."""
    if uri.startswith("s3://"):
        return _stored_files(uri, scratch)
    if uri == DIGITS:
        return Files(uri, (), lambda key: scratch / key, False, scratch, "digits")
    path = local_path(f"{EMOJI}/emoji.parquet" if uri == EMOJI else uri, scratch)
    root = path if path.is_dir() else path.parent
    # Links are followed: data sets often are folders of links.
    found = (
        [Path(at) / n for at, _, names in os.walk(root, followlinks=True) for n in names] if path.is_dir() else [path]
    )
    keys = tuple(sorted(p.relative_to(root).as_posix() for p in found if _known(p.name)))
    sizes = [(root / key).stat().st_size for key in keys]
    identity = _identity(uri, list(zip(keys, sizes, strict=True)))
    return Files(uri, keys, lambda key: root / key, False, scratch / f"images-{identity}", identity)


def _stored_files(uri: str, scratch: Path) -> Files:
    storage = open_storage(uri)
    keys = storage.list("")
    if not keys:
        # Not a folder: the URI may name one object.
        parent, _, name = uri.rpartition("/")
        storage, keys = open_storage(parent), [name]
    known = tuple(key for key in keys if _known(key))
    identity = _identity(uri, list(known))
    folder = scratch / f"images-{identity}"

    def fetch(key: str) -> Path:
        path = folder / key
        if not path.exists():
            storage.download(key, path)
        return path

    return Files(uri, known, fetch, True, folder, identity)


def _known(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES + SHARDS or path.name in (COUNTS, CAPTIONS)


def _identity(uri: str, content: list[Any]) -> str:
    return hashlib.sha256(json.dumps([uri, content]).encode()).hexdigest()[:16]


def _shards(files: Files, field: str) -> list[Shard]:
    makers: dict[str, type[ParquetShard | TarShard | TensorShard]] = {
        ".parquet": ParquetShard,
        ".tar": TarShard,
        ".safetensors": TensorShard,
    }
    if files.uri == DIGITS:
        return [DigitsShard(files, "digits")]
    keys = [key for key in files.keys if not key.endswith((COUNTS, CAPTIONS))]
    kinds = {PurePosixPath(key).suffix.lower() for key in keys}
    if not kinds:
        known = ", ".join((*PICTURES, *SHARDS))
        raise BadInputError(f"{field}: {files.uri}: no images there (looked for {known})")
    if kinds <= set(PICTURES):
        return [PictureShard(files, keys)]
    if len(kinds) > 1:
        raise BadInputError(f"{field}: {files.uri}: holds {' and '.join(sorted(kinds))} files; give one kind a folder")
    (kind,) = kinds
    return [makers[kind](files, key) for key in keys]
