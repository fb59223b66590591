"""The files of an image set, on disk or in storage, each fetched when it is first needed."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmd_api.paths import below
from dmd_trainer.runtime.fetch import local_path
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
    """

    uri: str
    keys: tuple[str, ...]
    fetch: Callable[[str], Path]
    remote: bool
    scratch: Path
    identity: str


def find_files(uri: str, scratch: Path, wanted: Callable[[str], bool]) -> Files:
    """The files at a URI whose names are wanted: those of a folder, or one."""
    return _stored_files(uri, scratch, wanted) if uri.startswith("s3://") else _local_files(uri, scratch, wanted)


def _local_files(uri: str, scratch: Path, wanted: Callable[[str], bool]) -> Files:
    path = local_path(uri, scratch)
    root = path if path.is_dir() else path.parent
    found = [Path(at) / n for at, _, names in os.walk(root) for n in names] if path.is_dir() else [path]
    keys = tuple(sorted(p.relative_to(root).as_posix() for p in found if wanted(p.name)))
    sizes = [(root / key).stat().st_size for key in keys]
    identity = _identity(uri, list(zip(keys, sizes, strict=True)))
    return Files(uri, keys, lambda key: root / key, False, scratch / f"images-{identity}", identity)


def _stored_files(uri: str, scratch: Path, wanted: Callable[[str], bool]) -> Files:
    storage = open_storage(uri)
    keys = storage.list("")
    if not keys:
        # Not a folder: the URI may name one object.
        parent, _, name = uri.rpartition("/")
        storage, keys = open_storage(parent), [name]
    known = tuple(key for key in keys if wanted(key))
    identity = _identity(uri, list(known))
    folder = scratch / f"images-{identity}"
    paths = {key: below(folder, key, uri) for key in known}

    def fetch(key: str) -> Path:
        path = paths[key]
        if not path.exists():
            storage.download(key, path)
        return path

    return Files(uri, known, fetch, True, folder, identity)


def _identity(uri: str, content: list[Any]) -> str:
    return hashlib.sha256(json.dumps([uri, content]).encode()).hexdigest()[:16]
