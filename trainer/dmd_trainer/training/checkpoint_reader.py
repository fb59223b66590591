"""Reads what torch.distributed.checkpoint wrote: tensors, by an index that is unpickled without running it"""

import pickle
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dmd_api.paths import below

INDEX = ".metadata"
"""The index's name; torch.distributed.checkpoint writes it as a pickle."""

KNOWN: dict[str, Callable[..., Any]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        Metadata,
        StorageMeta,
        metadata.ChunkStorageMetadata,
        metadata.MetadataIndex,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
    )
} | {
    "torch.serialization._get_layout": torch.serialization._get_layout,
    # Where the checkpoint was written to, by either name that Python has for it.
    "pathlib.PosixPath": PurePosixPath,
    "pathlib._local.PosixPath": PurePosixPath,
}
"""All that an index of tensors is made of, besides element types. Not `BytesStorageMetadata`: what it stands for would
be unpickled."""


class _Unpickler(pickle.Unpickler):
    """Finds what is known, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        if (full := f"{module}.{name}") not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {full}, which was not run")
        return KNOWN[full]


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint.

    Args:
        folder: a local copy.

    Raises:
        ValueError: it cannot be read, asks for code, or names files that are not in the checkpoint.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            index = _Unpickler(file).load()
        for place in index.storage_data.values():
            if not below(folder, place.relative_path, INDEX).is_file():
                raise ValueError(f"{place.relative_path} is missing")
    except Exception as error:  # pickle raises nearly anything at what is none
        raise ValueError(f"{INDEX}: {str(error) or type(error).__name__}") from error
    if not isinstance(index, Metadata):
        raise ValueError(f"{INDEX} is no index")
    index.storage_meta = StorageMeta()
    return index


class CheckpointReader(FileSystemReader):
    """torch.distributed.checkpoint's, with an index that is data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's index; errors as `read_index`."""
        return read_index(Path(self.path))
