"""Captions and labels that lie beside pictures in a folder, as Hugging Face, EDM, kohya and img2dataset put them."""

import json
import posixpath
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from dmd_trainer.conditions.tables import rows
from dmd_trainer.conditions.texts import COLUMNS, text_column, texts_in
from dmd_trainer.data.decoding import in_threads
from dmd_trainer.data.files import Files
from dmd_trainer.data.shard import LABELS, MAX_BESIDE, one_caption
from dmd_trainer.runtime.reading import reading

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Hugging Face's names for annotations: rows of {"file_name": "a.png", "text": "a tree"}, in any folder."""
EDM_LABELS = "dataset.json"
"""EDM's name for all labels of a folder: {"labels": [["00000/img00000000.png", 6], ...]}, or null for none."""
SIDECARS = (".txt", ".caption", ".json")
"""What a caption's own file may be, `a.txt` beside `a.png`; the first that is there."""
REMEDY = "correct or remove it"
MAX_JSON = 2**28
"""Bytes of EDM's file: of ImageNet's it has fifty million."""


def is_annotation(name: str) -> bool:
    """Whether a file of this name may hold captions or labels of pictures beside it."""
    return name in METADATA or PurePosixPath(name).suffix.lower() in SIDECARS


class Annotations:
    """What lies beside the pictures of a folder.

    Args:
        files: the folder's.
        keys: the pictures.

    Raises:
        BadInputError: a metadata file cannot be read, has something else in it, or names none of the pictures.
    """

    def __init__(self, files: Files, keys: Sequence[str]) -> None:
        self._files, self._keys = files, keys
        self._beside = {
            stem + suffix.lower(): f"{stem}{suffix}" for stem, suffix in map(posixpath.splitext, files.keys)
        }
        self._texts: dict[str, list[str]] = {}
        self._labels: dict[str, int] = {}
        self.unknown: list[str] = []
        """The pictures that metadata files name, and that are not there."""
        pictures = set(keys)
        for key in files.keys:
            if key.rpartition("/")[2] in METADATA:
                with reading(files.where(key), REMEDY):
                    self._read_metadata(key, pictures)

    def _read_metadata(self, key: str, pictures: set[str]) -> None:
        before, found = len(self.unknown), 0
        for place, row in rows(self._files.fetch(key), ("file_name", *COLUMNS, *LABELS)):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise ValueError(f"{place} has no file_name")
            # Counted from the file's own folder; Windows writes backslashes.
            name = posixpath.join(posixpath.dirname(key), row["file_name"].replace("\\", "/"))
            name = posixpath.normpath(name)
            if name not in pictures:
                self.unknown.append(name)
                continue
            found += 1
            try:
                self._texts.setdefault(name, []).extend(_texts(row))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            label = next((row[column] for column in LABELS if column in row), None)
            if (number := _number(label)) is not None:
                self._labels[name] = number
        if not found and len(self.unknown) > before:
            raise ValueError(f"none of the pictures that it names is there, {self.unknown[before]} for one")

    def edm_labels(self) -> list[int] | None:
        """The labels in EDM's file; None where it has none.

        Raises:
            BadInputError: it cannot be read, or a picture's label is missing or no number.
        """
        with reading(self._files.where(EDM_LABELS), REMEDY):
            path = self._files.fetch(EDM_LABELS)
            if path.stat().st_size > MAX_JSON:
                raise ValueError(f"it has more than {MAX_JSON:,} bytes")
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or content.get("labels") is None:
                return None
            labels = {str(name).replace("\\", "/"): label for name, label in content["labels"]}
            for key in self._keys:
                if type(labels.get(key)) is not int:
                    raise ValueError(f"the label of {key} is {labels.get(key)}, not a number")
            return [labels[key] for key in self._keys]

    def labels(self) -> list[int] | None:
        """The labels in metadata files; None where not every picture has one that is a number."""
        return [self._labels[key] for key in self._keys] if self._labels.keys() >= set(self._keys) else None

    def captions(self) -> list[str] | None:
        """Each picture's caption, in a metadata file or one of its own; "" where it has none; None where none has one.

        Raises:
            BadInputError: one cannot be read, or is no text.
        """
        found = in_threads(self._caption, self._keys)
        return found if any(found) else None

    def _caption(self, key: str) -> str:
        texts = self._texts.get(key)
        if not texts:
            stem = posixpath.splitext(key)[0]
            suffix = next((suffix for suffix in SIDECARS if stem + suffix in self._beside), None)
            texts = [] if suffix is None else self._read_sidecar(self._beside[stem + suffix])
        return one_caption(texts, key)

    def _read_sidecar(self, key: str) -> list[str]:
        with reading(self._files.where(key), REMEDY):
            path = self._files.fetch(key)
            if path.stat().st_size > MAX_BESIDE:
                raise ValueError(f"it has more than {MAX_BESIDE:,} bytes; no caption is so long")
            content = path.read_bytes()
            if not key.lower().endswith(".json"):
                return texts_in(content)
            values = json.loads(content)
            return _texts(values) if isinstance(values, dict) else []


def _texts(row: dict[str, Any]) -> list[str]:
    column = text_column(list(row))
    return [] if column is None else texts_in(row[column])


def _number(label: object) -> int | None:
    if isinstance(label, str) and label.isascii() and label.isdecimal():  # CSV has nothing but texts
        return int(label)
    return label if type(label) is int else None
