"""The comparison on the glyphs: as on the digits, where what a method leaves to be desired can be measured."""

from functools import partial

from benchmarks.one_step import run as compare

run = partial(compare, "glyphs")
