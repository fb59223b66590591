"""Reads what users give: whatever a library raises at it is bad input, and hidden files are not data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dmd_api.errors import refusing


@contextmanager
def reading(what: str, remedy: str = "replace or remove it") -> Iterator[None]:
    """Reads a file that a user gave, with libraries that raise whatever they like at a damaged one.

    Args:
        what: the field, the URI and the file, for the message.
        remedy: what to do about it.

    Raises:
        BadInputError: it cannot be read, for whatever reason.
        InfrastructureError: this machine's disks or its network are to blame.
    """
    with refusing(f"{what} cannot be read", remedy):
        yield


def is_left_out(path: str) -> bool:
    """Whether a path below a source is no data: hidden (`._a.jpg`, `.cache/`), macOS's own, or leading elsewhere."""
    return any(part in ("__MACOSX", "/") or part.startswith(".") for part in PurePosixPath(path).parts)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which appears at `path` when all of it is written, and not at all where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
