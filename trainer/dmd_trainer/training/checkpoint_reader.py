"""Reads what torch.distributed.checkpoint wrote: tensors and plain values, from pickles of which nothing is run"""

import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from dmd_api.paths import below

INDEX = ".metadata"
"""The index's name; torch.distributed.checkpoint writes it as a pickle."""


def _encoding(kind: Any, name: Any) -> Any:
    """What `getattr` gives for an encoding's name, which is how some releases of Python pickle an enumeration."""
    if kind is not metadata._MEM_FORMAT_ENCODING or name not in kind.__members__:
        raise pickle.UnpicklingError(f"it asks for {name!r} of {kind!r}, which was not run")
    return kind[name]


KNOWN: dict[str, Callable[..., Any]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        Metadata,
        StorageMeta,
        BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.MetadataIndex,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
    )
} | {
    "builtins.getattr": _encoding,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    # Where the checkpoint was written to, by either name that Python has for it.
    "pathlib.PosixPath": PurePosixPath,
    "pathlib._local.PosixPath": PurePosixPath,
}
"""All that an index is made of, besides element types."""


class _Unpickler(pickle.Unpickler):
    """Finds what is known, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        if (full := f"{module}.{name}") not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {full}, which was not run")
        return KNOWN[full]


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint, whose values other than tensors can all be read.

    Args:
        folder: a local copy.

    Raises:
        ValueError: it cannot be read, asks for code, or names files that are not in the checkpoint.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            index = _Unpickler(file).load()
        for item, place in index.storage_data.items():
            file_of = below(folder, place.relative_path, INDEX)
            if not file_of.is_file():
                raise ValueError(f"{place.relative_path} is missing")
            if isinstance(index.state_dict_metadata[item.fqn], BytesStorageMetadata):
                with file_of.open("rb") as file:
                    file.seek(place.offset)
                    _plain(BytesIO(file.read(place.length)))
    except Exception as error:  # pickle raises nearly anything at what is none
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{INDEX}: {reason}") from error
    if not isinstance(index, Metadata):
        raise ValueError(f"{INDEX} is no index")
    index.storage_meta = StorageMeta()
    return index


def _plain(content: BytesIO) -> BytesIO:
    """The same value, pickled here: of tensors, numbers, texts and containers alone."""
    harmless = BytesIO()
    torch.save(torch.load(content, map_location="cpu", weights_only=True), harmless)
    harmless.seek(0)
    return harmless


class CheckpointReader(FileSystemReader):
    """torch.distributed.checkpoint's, with an index that is data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's index; errors as `read_index`."""
        return read_index(Path(self.path))


class CheckpointPlanner(DefaultLoadPlanner):
    """torch.distributed.checkpoint's, which runs the pickles of values that are no tensors."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Takes a value up into the state."""
        super().load_bytes(read_item, _plain(value))
