"""Folders that come from elsewhere: only regular files of their own are read or copied, and nothing they point to"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dmd_api.errors import BadInputError
from dmd_api.paths import below

INDEX = ".index.json"
"""The end of the names of files that say which weights are in which file, as diffusers and transformers write them."""
ADAPTER = "adapter_config.json"
"""A file for which transformers loads another model, from wherever it says."""


def check_source(path: Path, uri: str) -> None:
    """Refuses a file or folder that leads out of itself.

    Args:
        path: what the libraries will be given.
        uri: what the manifest calls it, for messages.

    Raises:
        BadInputError: something in it is a link to elsewhere, no regular file, or names files elsewhere.
    """
    if not path.is_dir():
        if not path.is_file():
            raise BadInputError(f"{uri}: {path} is neither a folder nor a regular file; give one")
        return
    for entry in _entries(path):
        if entry.is_symlink() and not is_own(Path(entry.path), path):
            raise BadInputError(
                f"{uri}: {entry.path} is a link that leads out of the folder; put the file there itself"
            )
        if not os.path.isdir(entry) and not os.path.isfile(entry):
            raise BadInputError(f"{uri}: {entry.path} is no regular file; remove it")
        if entry.name == ADAPTER:
            raise BadInputError(f"{uri}: {entry.path} names another model; save the model with its adapter merged")
        if entry.name.endswith(INDEX):
            _check_index(Path(entry.path), uri)


def is_own(path: Path, folder: Path) -> bool:
    """Whether what `path` leads to is a folder's own: links within it may lead anywhere below it."""
    try:
        return path.resolve().is_relative_to(_top(folder))
    except (OSError, RuntimeError):  # links that lead in a circle
        return False


def _top(folder: Path) -> Path:
    """The folder, or the repository in the hub's cache of which it is a snapshot: links to the files beside it."""
    folder = folder.resolve()
    repository = folder.parent.parent
    return repository if folder.parent.name == "snapshots" and (repository / "blobs").is_dir() else folder


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is in a folder and below; links to folders are not followed, so that there are no circles."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                entries = list(found)
        except PermissionError:
            continue  # nobody here can read it, such as a disk's lost+found
        yield from entries
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _check_index(path: Path, uri: str) -> None:
    try:
        files = json.loads(path.read_text())["weight_map"].values()
        for name in set(files):
            below(path.parent, name, f"{uri}: {path.name}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInputError(
            f"{uri}: {path} is no index of weights ({type(error).__name__}); save them again"
        ) from error
