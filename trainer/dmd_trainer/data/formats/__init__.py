"""The formats of image sets: one file each, and one line each in `FORMATS`."""

from pathlib import PurePosixPath

from dmd_api.errors import BadInputError
from dmd_trainer.data.files import Files
from dmd_trainer.data.formats.arrays import Arrays
from dmd_trainer.data.formats.folder import CAPTIONS, Folder
from dmd_trainer.data.formats.parquet import Parquet
from dmd_trainer.data.formats.tar import Tar
from dmd_trainer.data.shard import Shard

FORMATS: tuple[type[Shard], ...] = (Folder, Parquet, Tar, Arrays)
COUNTS = "sizes.json"
"""Webdataset's name for the number of samples of each shard: {"a.tar": 1000}; with it no shard is read to count."""
NOT_IMAGES = (COUNTS, CAPTIONS)


def is_known(name: str) -> bool:
    """Whether a file of this name belongs to a set of images."""
    path = PurePosixPath(name)
    return path.name in NOT_IMAGES or any(path.suffix.lower() in kind.suffixes for kind in FORMATS)


def find_shards(files: Files, field: str) -> list[Shard]:
    """The shards of a set of images, in the format that its files' suffixes name.

    Args:
        files: the set's.
        field: the manifest's field, for messages.

    Raises:
        BadInputError: there are no images, or files of several formats.
    """
    keys = [key for key in files.keys if not key.endswith(NOT_IMAGES)]
    suffixes = {PurePosixPath(key).suffix.lower() for key in keys}
    if not suffixes:
        known = ", ".join(suffix for kind in FORMATS for suffix in kind.suffixes)
        raise BadInputError(f"{field}: {files.uri}: no images there (looked for {known})")
    for kind in FORMATS:
        if suffixes <= set(kind.suffixes):
            return [*kind.all_of(files, keys)]
    raise BadInputError(f"{field}: {files.uri}: holds {' and '.join(sorted(suffixes))} files; give one kind a folder")
