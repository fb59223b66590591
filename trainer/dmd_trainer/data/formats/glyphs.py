"""The glyphs, which are drawn as they are read."""

from functools import cached_property

import torch

from dmd_trainer.data.files import Files
from dmd_trainer.data.glyphs import CLASSES, HELD_OUT, LETTERS, TRAINING, draw_glyph
from dmd_trainer.data.shard import Entry, Shard

SETS = {"builtin://glyphs": (TRAINING, 1_000_000), "builtin://glyphs-held-out": (HELD_OUT, 50_000)}
"""The number of the first image of each set, and how many there are: enough to see none twice."""


class GlyphsShard(Shard):
    """So many glyphs; there are no files."""

    suffixes = ()
    counted_by_reading = False

    def __init__(self, files: Files) -> None:
        super().__init__(files, "glyphs")
        self._first, self._count = SETS[files.uri]

    def count(self) -> int:
        return self._count

    @cached_property
    def labels(self) -> list[int]:
        return [(self._first + index) % CLASSES for index in range(self._count)]

    @property
    def class_names(self) -> list[str]:
        return list(LETTERS)

    def entry(self, index: int) -> Entry:
        number = self._first + index
        image = torch.from_numpy(draw_glyph(number)).permute(2, 0, 1).float() / 127.5 - 1
        return Entry(f"glyph {number}", image)
