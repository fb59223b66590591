"""Decodes pictures to tensors in a pool of threads."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order; PIL decodes and resizes without Python's lock."""
    return list(_pool().map(function, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")


def decode(content: bytes, prepare: Callable[[Image.Image], Image.Image]) -> Tensor | None:
    """A picture file's content as [C, H, W], float32, in [-1, 1]; None where it is damaged.

    Args:
        content: of a file in any of PIL's formats.
        prepare: brings the picture into the mode and size that is wanted.
    """
    try:
        with Image.open(BytesIO(content)) as picture:
            return to_tensor(prepare(picture))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        # What PIL's plugins raise at damaged files; SyntaxError is its word for a broken PNG.
        return None


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [C, H, W], float32, in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return (pixels.float() / 127.5 - 1).contiguous()
