"""Small sources of images, as other people have them."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmd_api.spec import Location
from dmd_trainer.data.image_set import ImageSet

FIELD = "spec.data.images"


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file of a kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(value: int) -> bytes:
    """A PNG of one grey level."""
    return encoded(Image.new("L", (8, 8), value))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w", **options: Any) -> Path:
    """A tar of members by name."""
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """A folder of files by their paths."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def opened(path: Path) -> ImageSet:
    """The images at a path."""
    return ImageSet(Location(uri=path.as_uri()), FIELD, path.parent / "scratch")


def pictures(images: ImageSet) -> list[np.ndarray]:
    """All pictures as bytes, [C, H, W]."""
    rows = images.read(range(len(images)), lambda picture: picture)
    return [np.round((row[0].numpy() + 1) * 127.5).astype(int) for row in rows if row is not None]


def levels(images: ImageSet) -> list[int]:
    """The first pixel of each picture."""
    return [int(picture[0, 0, 0]) for picture in pictures(images)]


def labels(images: ImageSet) -> list[int | None]:
    """All labels, shard after shard."""
    places = [images.place(index) for index in range(len(images))]
    return [None if shard.labels is None else shard.labels[row] for shard, row in places]


def captions(images: ImageSet) -> list[str]:
    """All captions, shard after shard."""
    places = [images.place(index) for index in range(len(images))]
    return [(shard.captions or [""] * shard.count())[row] for shard, row in places]
