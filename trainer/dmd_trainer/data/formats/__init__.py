"""The formats of image sets: one file each, and one line each in `FORMATS`."""

from pathlib import PurePosixPath

from dmd_api.errors import BadInputError
from dmd_trainer.data.annotations import is_annotation
from dmd_trainer.data.files import Files
from dmd_trainer.data.formats.arrays import Arrays
from dmd_trainer.data.formats.folder import Folder
from dmd_trainer.data.formats.parquet import Parquet
from dmd_trainer.data.formats.tar import Tar
from dmd_trainer.data.shard import Shard

FORMATS: tuple[type[Shard], ...] = (Folder, Parquet, Tar, Arrays)
COUNTS = "sizes.json"
"""Webdataset's name for the number of samples of each shard: {"a.tar": 1000}; with it no shard is read to count."""


def is_known(name: str) -> bool:
    """Whether a file of this name belongs to a set of images."""
    return is_annotation(name) or format_of(name) is not None


def format_of(name: str) -> type[Shard] | None:
    """The format of a file of this name; None where it holds no images."""
    if is_annotation(name):
        return None
    return next((kind for kind in FORMATS if name.lower().endswith(kind.suffixes)), None)


def find_shards(files: Files) -> list[Shard]:
    """The shards of a set of images, in the format that its files' suffixes name.

    Raises:
        BadInputError: there are no images, or files of several formats.
    """
    keys: dict[type[Shard], list[str]] = {}
    for key in files.keys:
        if (kind := format_of(key.rpartition("/")[2])) is not None:
            keys.setdefault(kind, []).append(key)
    if not keys:
        known = ", ".join(suffix for kind in FORMATS for suffix in kind.suffixes)
        others = f"; {files.left_out[0]} is none of them" if files.left_out else ""
        raise BadInputError(f"{files.field}: {files.uri}: no images there (looked for {known}{others})")
    if len(keys) > 1:
        examples = " and ".join(sorted(PurePosixPath(found[0]).name for found in keys.values()))
        raise BadInputError(f"{files.field}: {files.uri}: holds files of several kinds, {examples}; give each a folder")
    ((kind, found),) = keys.items()
    return [*kind.all_of(files, found)]
