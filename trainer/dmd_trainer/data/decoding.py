"""Decodes pictures to tensors as they are meant to be seen, in a pool of threads."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dmd_api.errors import first_line

T = TypeVar("T")
R = TypeVar("R")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""PIL's names of the formats that are read: each decoder that is reachable is one more that can be attacked."""
BACKGROUND = "white"
"""What shows through transparent pixels."""
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""PIL's own bound, above which it warns of a decompression bomb: 89 million."""


class UndecodableError(Exception):
    """A picture file that is damaged, of another format, or too large."""


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order; PIL decodes and resizes without Python's lock."""
    return list(_pool().map(function, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")


def decode(content: bytes) -> Image.Image:
    """A picture file's content as it is meant to be seen: upright, opaque, 8 bits, in mode L or RGB.

    Raises:
        UndecodableError: PIL cannot read it, or it may not be read.
    """
    if not content:
        raise UndecodableError("it is empty")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if not 0 < width * height <= MAX_PIXELS:
                raise UndecodableError(f"it has {width}x{height} pixels, and at most {MAX_PIXELS:,} are read")
            return _as_seen(picture)
    except UndecodableError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError(f"it is neither of {', '.join(FORMATS)}") from error
    except Exception as error:  # PIL's plugins raise SyntaxError, struct.error, IndexError... at damaged files
        raise UndecodableError(first_line(error)) from error


def _as_seen(picture: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    if picture.mode in ("I", "F"):
        raise UndecodableError("its 32 bits a pixel have no known range; save it with 8 or 16")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The higher byte of 16 grey bits, which is what PIL takes of colours; its own conversion cuts at 255."""
    values = np.asarray(picture)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [C, H, W], float32, in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return (pixels.float() / 127.5 - 1).contiguous()
