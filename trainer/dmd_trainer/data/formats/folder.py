"""Folders of picture files, optionally one for each class."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

from dmd_trainer.data.annotations import EDM_LABELS, Annotations
from dmd_trainer.data.class_folders import ClassFolders, class_folders
from dmd_trainer.data.files import Files
from dmd_trainer.data.shard import MAX_PICTURE, Entry, Shard
from dmd_trainer.runtime.reading import reading

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OF_FOLDERS = "labels by the folders' names"


class Folder(Shard):
    """All picture files of a folder, and what lies beside them.

    Labels are those of EDM's `dataset.json`, else of metadata files, else of the folders' names.

    Args:
        files: the set's.
        keys: the pictures.
    """

    suffixes = PICTURES
    counted_by_reading = False

    def __init__(self, files: Files, keys: Sequence[str]) -> None:
        super().__init__(files, "pictures")
        self._keys = keys

    @classmethod
    def all_of(cls, files: Files, keys: Sequence[str]) -> list[Self]:
        return [cls(files, keys)]

    @cached_property
    def _annotations(self) -> Annotations:
        return Annotations(self.files, self._keys)

    @cached_property
    def _folders(self) -> ClassFolders | str:
        return class_folders(self._keys)

    @cached_property
    def _found(self) -> tuple[list[int] | None, str]:
        """The labels, and where they come from, or why there are none."""
        if EDM_LABELS in self.files.keys:
            labels = self._annotations.edm_labels()
            return labels, f"labels of {EDM_LABELS}" if labels is not None else f"no labels: {EDM_LABELS} has none"
        if (labels := self._annotations.labels()) is not None:
            return labels, "labels of metadata"
        if isinstance(self._folders, str):
            return None, f"no labels: {self._folders}"
        return self._folders.labels, OF_FOLDERS

    def count(self) -> int:
        return len(self._keys)

    @cached_property
    def labels(self) -> list[int] | None:
        return self._found[0]

    @property
    def class_names(self) -> list[str] | None:
        folders = self._folders
        return folders.names if isinstance(folders, ClassFolders) and self._found[1] == OF_FOLDERS else None

    @cached_property
    def captions(self) -> list[str] | None:
        return self._annotations.captions()

    @property
    def notes(self) -> list[str]:
        unknown = self._annotations.unknown
        return [f"{len(unknown):,} pictures named in metadata are not there ({unknown[0]})"] if unknown else []

    @property
    def about_labels(self) -> str:
        return self._found[1]

    def entry(self, index: int) -> Entry:
        key = self._keys[index]
        with reading(self.files.where(key)):
            path = self.files.fetch(key)
            if path.stat().st_size > MAX_PICTURE:
                raise ValueError(f"it has more than {MAX_PICTURE:,} bytes; no picture is so large")
            content = path.read_bytes()
        return Entry(key, content)
