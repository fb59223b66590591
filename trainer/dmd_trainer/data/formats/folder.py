"""Folders of picture files, optionally one for each class."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Self

from dmd_api.errors import BadInputError
from dmd_trainer.conditions.prompts import COLUMNS
from dmd_trainer.data.files import Files
from dmd_trainer.data.shard import Entry, Shard

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = "metadata.jsonl"
"""Hugging Face's name for a folder's annotations: lines of {"file_name": "a.png", "text": "a tree"}."""


class Folder(Shard):
    """All picture files of a folder; with a folder for each class, classes are numbered as the folders are sorted.

    Captions are those of `metadata.jsonl`.

    Args:
        files: the set's.
        keys: the pictures.
    """

    suffixes = PICTURES
    counted_by_reading = False

    def __init__(self, files: Files, keys: Sequence[str]) -> None:
        super().__init__(files, "pictures")
        self._keys = keys
        folders = {key.split("/")[0] for key in keys if "/" in key}
        in_folders = all("/" in key for key in keys)
        self._classes = {name: number for number, name in enumerate(sorted(folders))} if in_folders else {}

    @classmethod
    def all_of(cls, files: Files, keys: Sequence[str]) -> list[Self]:
        return [cls(files, keys)]

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
