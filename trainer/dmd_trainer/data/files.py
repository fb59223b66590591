"""The files of an image set, on disk or in storage, each fetched when it is first needed."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmd_api.paths import below
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.reading import is_left_out, reading
from dmd_trainer.runtime.storage import open_storage


@dataclass(frozen=True)
class Files:
    """The files at a URI.

    Attributes:
        uri: the place, as the manifest gives it.
        keys: the files' paths below it, sorted.
        fetch: returns the local path of a file, which is downloaded if it is missing.
        remote: whether `fetch` downloads.
        scratch: a local folder for copies.
        identity: a hash of what tells these files from others.
        field: the manifest's field, for messages.
        left_out: the other files there, sorted: hidden, of another kind, or not to be read.
    """

    uri: str
    keys: tuple[str, ...]
    fetch: Callable[[str], Path]
    remote: bool
    scratch: Path
    identity: str
    field: str
    left_out: tuple[str, ...] = ()

    def where(self, key: str) -> str:
        """The field, the URI and a file, for messages."""
        return f"{self.field}: {self.uri}: {key}"


def find_files(uri: str, scratch: Path, wanted: Callable[[str], bool], field: str) -> Files:
    """The files at a URI whose names are wanted: those of a folder, or one; hidden ones are left out.

    Args:
        uri: the place.
        scratch: where remote files are copied to.
        wanted: says of a file's name whether it belongs to the set.
        field: the manifest's field, for messages.
    """

    def chosen(keys: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        taken = {key for key in keys if wanted(key.rpartition("/")[2]) and not is_left_out(key)}
        return tuple(sorted(taken)), tuple(sorted(set(keys) - taken))

    if uri.startswith("s3://"):
        return _stored_files(uri, scratch, chosen, field)
    return _local_files(uri, scratch, chosen, field)


Chosen = Callable[[Sequence[str]], tuple[tuple[str, ...], tuple[str, ...]]]
"""Of all keys those that are wanted, and the others."""


def _local_files(uri: str, scratch: Path, chosen: Chosen, field: str) -> Files:
    path = local_path(uri, scratch)
    root = path if path.is_dir() else path.parent
    with reading(f"{field}: {uri}"):
        sizes = {p.relative_to(root).as_posix(): _size(p) for p in (_walk(root) if path.is_dir() else [path])}
    keys, others = chosen([key for key, size in sizes.items() if size is not None])
    left_out = tuple(sorted([*others, *(key for key, size in sizes.items() if size is None)]))
    identity = _identity(uri, [(key, sizes[key]) for key in keys])
    return Files(uri, keys, lambda key: root / key, False, scratch / f"images-{identity}", identity, field, left_out)


def _size(path: Path) -> int | None:
    """A file's bytes; None of a pipe, which would never end, and of a link to nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _walk(root: Path) -> Iterator[Path]:
    """All files below a folder. Links are followed, since data sets often are folders of links, but not in a circle."""
    above: dict[str, frozenset[str]] = {}
    for at, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(at)
        seen = above.get(os.path.dirname(at), frozenset())
        if real in seen:
            folders.clear()
            continue
        above[at] = seen | {real}
        yield from (Path(at) / name for name in names)


def _stored_files(uri: str, scratch: Path, chosen: Chosen, field: str) -> Files:
    storage = open_storage(uri)
    keys = storage.list("")
    if not keys:
        # Not a folder: the URI may name one object.
        parent, _, name = uri.rpartition("/")
        storage, keys = open_storage(parent), [name]
    known, others = chosen(keys)
    identity = _identity(uri, list(known))
    folder = scratch / f"images-{identity}"
    paths = {key: below(folder, key, f"{field}: {uri}") for key in keys}

    def fetch(key: str) -> Path:
        path = paths[key]
        if not path.exists():
            storage.download(key, path)
        return path

    return Files(uri, known, fetch, True, folder, identity, field, others)


def _identity(uri: str, content: list[Any]) -> str:
    return hashlib.sha256(json.dumps([uri, content]).encode()).hexdigest()[:16]
