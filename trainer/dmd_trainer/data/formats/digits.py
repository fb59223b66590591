"""scikit-learn's digits, which ship with it."""

from functools import cached_property

from torch import Tensor

from dmd_trainer.data.digits import load_digits_images
from dmd_trainer.data.files import Files
from dmd_trainer.data.shard import Entry, Shard


class DigitsShard(Shard):
    """All digits; there are no files."""

    suffixes = ()
    counted_by_reading = False

    def __init__(self, files: Files) -> None:
        super().__init__(files, "digits")

    @cached_property
    def _digits(self) -> tuple[Tensor, Tensor]:
        return load_digits_images()

    def count(self) -> int:
        return len(self._digits[0])

    @cached_property
    def labels(self) -> list[int]:
        return self._digits[1].tolist()

    def entry(self, index: int) -> Entry:
        return Entry(f"digit {index}", self._digits[0][index])
