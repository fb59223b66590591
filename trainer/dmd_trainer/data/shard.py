"""A shard: a part of a set of images, which every format in `formats/` implements."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

from torch import Tensor

from dmd_trainer.data.files import Files
from dmd_trainer.runtime.reading import reading

LABELS = ("label", "class", "class_labels")
"""The columns or keys that hold a class, the first that is there."""
MAX_PICTURE, MAX_BESIDE = 2**28, 2**24
"""Bytes of a picture's file, and of one beside it: none that may be decoded, and no caption, has more."""


@dataclass(frozen=True)
class Entry:
    """What a shard holds at an index.

    Attributes:
        name: for messages.
        content: a picture file's bytes, or a float tensor [C, H, W].
    """

    name: str
    content: bytes | Tensor


class Shard(ABC):
    """A part of a set of images; nothing is read before it is needed.

    Args:
        files: the set's.
        key: the shard's own file.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """The suffixes of the format's files, lower-case."""
    counted_by_reading: ClassVar[bool] = True
    """Whether `count` has to read the shard's file."""

    def __init__(self, files: Files, key: str) -> None:
        self.files, self.key = files, key

    @classmethod
    def all_of(cls, files: Files, keys: Sequence[str]) -> list[Self]:
        """The shards of a set whose files, sorted, are `keys`: one for each file."""
        return [cls(files, key) for key in keys]

    @abstractmethod
    def count(self) -> int:
        """How many entries it has."""

    @cached_property
    def labels(self) -> Sequence[int | None] | None:
        """The class of each entry; None where no entry has one."""
        return None

    @cached_property
    def captions(self) -> list[str] | None:
        """A caption for each entry, "" where it has none; None where no entry has one."""
        return None

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, in the order that numbered them; None where labels are numbers by themselves."""
        return None

    @property
    def about_labels(self) -> str:
        """Where its labels come from, or why it has none, where there is something to say."""
        return ""

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it was read: what was left out and why."""
        return []

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """The entry at an index within the shard."""

    def reading(self) -> AbstractContextManager[None]:
        """Reads the shard's file: whatever is raised becomes a BadInputError that names it."""
        return reading(self.files.where(self.key))


def one_caption(captions: Sequence[str], key: str) -> str:
    """The caption of an image that has any number of them: of several, always the same one that its key draws."""
    return random.Random(key).choice(captions) if captions else ""
