"""A shard: a part of a set of images, which every format in `formats/` implements."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.data.files import Files


@dataclass(frozen=True)
class Entry:
    """What a shard holds at an index.

    Attributes:
        name: for messages.
        content: a picture file's bytes, or a float tensor [C, H, W].
        label: its class, where it has one.
    """

    name: str
    content: bytes | Tensor
    label: int | None


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

    @property
    @abstractmethod
    def labelled(self) -> bool:
        """Whether its entries have labels."""

    @cached_property
    def captions(self) -> list[str] | None:
        """A caption for each entry, "" where it has none; None where no entry has one."""
        return None

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """The entry at an index within the shard."""

    def unreadable(self, reason: object) -> BadInputError:
        """The error to raise when the shard's file cannot be used."""
        return BadInputError(f"{self.files.uri}: {self.key} cannot be read ({reason}); replace or remove it")
