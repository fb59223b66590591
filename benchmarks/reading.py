"""Real images by number: the trainer's own index against Hugging Face's `datasets`, for each format that both read.

Both read the same files and give the same pixels. `datasets` is no dependency: where it is not installed, only the
trainer is measured (`pip install datasets webdataset`).
"""

import importlib.util
import io
import multiprocessing
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

COUNT, SHARDS, DRAWN, SIZE = 800, 4, 400, 512
FORMATS = ("folder", "tar", "parquet")


Open = Callable[[Path, Path], Callable[[Sequence[int]], list[Tensor]]]
"""From the files and a folder for copies to a reader of images by number."""


@dataclass(frozen=True)
class Reading:
    """What reading took.

    Attributes:
        opening_s: until images can be drawn.
        images_per_core_second: drawn at random and decoded, by the time that processors spent on it.
        copied: bytes written beside the files, as a share of theirs.
        memory_mib: what the process has grown by.
        checksum: of all pixels.
    """

    opening_s: float
    images_per_core_second: float
    copied: float
    memory_mib: float
    checksum: float


def run() -> dict[str, Any]:
    """Measures both, each in a process of its own, and prints a table."""
    readers = {"trainer": _trainer} | ({"datasets": _datasets} if importlib.util.find_spec("datasets") else {})
    table = Table("format", "reader", "opening, s", "images/s and core", "copied", "memory, MiB")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = [_picture(number) for number in range(COUNT)]
        for kind in FORMATS:
            (root / kind).mkdir()
            _write(kind, pictures, root / kind)
            results: dict[str, Reading] = {}
            for reader, open_set in readers.items():
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    results[reader] = pool.apply(_measure, (open_set, root / kind, root / f"{kind}-{reader}"))
                values = results[reader]
                row = (values.opening_s, values.images_per_core_second, values.copied, values.memory_mib)
                table.add_row(kind, reader, *(f"{value:.3g}" for value in row))
            assert len({reading.checksum for reading in results.values()}) == 1, "both give the same pixels"
            found[kind] = {reader: asdict(reading) for reader, reading in results.items()}
    Console().print(table)
    return found


def _measure(
    open_set: Callable[[Path, Path], Callable[[Sequence[int]], list[Tensor]]], root: Path, at: Path
) -> Reading:
    torch.set_num_threads(1)
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    read = open_set(root, at)
    read([0])
    opened, spent = time.perf_counter(), time.process_time()
    draws = random.Random(0)
    checksum = 0.0
    for _ in range(DRAWN // 8):
        checksum += sum(float(sample.sum()) for sample in read([draws.randrange(COUNT) for _ in range(8)]))
    spent = time.process_time() - spent
    return Reading(
        opened - started,
        DRAWN / spent,
        _size(at) / _size(root),
        (process.memory_info().rss - before) / 2**20,
        round(checksum, 1),
    )


def _trainer(root: Path, at: Path) -> Callable[[Sequence[int]], list[Tensor]]:
    from dmd_api.spec import Location
    from dmd_trainer.data.image_set import ImageSet

    images = ImageSet(Location(uri=root.as_uri()), "images", at)
    return lambda indices: [row[0] for row in images.read(indices, lambda picture: picture) if row is not None]


def _datasets(root: Path, at: Path) -> Callable[[Sequence[int]], list[Tensor]]:
    import datasets

    kind = {"folder": "imagefolder", "tar": "webdataset"}.get(root.name, root.name)
    files = {"train": sorted(str(path) for path in root.iterdir())}
    images = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(at))
    column = "jpg" if root.name == "tar" else "image"
    if root.name == "parquet":
        images = images.cast_column(column, datasets.Image())

    def tensor(picture: Image.Image) -> Tensor:
        return (torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1).contiguous()

    return lambda indices: [tensor(row[column]) for row in (images[index] for index in indices)]


def _picture(number: int) -> bytes:
    """A JPEG of smooth colours and some noise, whose size is that of a photograph."""
    draws = np.random.default_rng(number)
    colours = Image.fromarray(draws.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = colours.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(np.int16) + draws.integers(-12, 13, (SIZE, SIZE, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write(kind: str, pictures: list[bytes], root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in range(SHARDS):
        numbers = range(shard * COUNT // SHARDS, (shard + 1) * COUNT // SHARDS)
        match kind:
            case "folder":
                for number in numbers:
                    (root / f"{number:05d}.jpg").write_bytes(pictures[number])
            case "tar":
                with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
                    for number in numbers:
                        info = tarfile.TarInfo(f"{number:05d}.jpg")
                        info.size = len(pictures[number])
                        tar.addfile(info, io.BytesIO(pictures[number]))
            case "parquet":
                table = pa.table({"image": [{"bytes": pictures[n], "path": f"{n}.jpg"} for n in numbers]})
                pq.write_table(table, root / f"{shard:05d}.parquet", row_group_size=100)


def _size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
