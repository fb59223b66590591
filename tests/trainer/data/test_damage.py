"""Damaged files of every format: where the library raises we refuse, where it reads ours equals it.

`make fuzz` tries 500 of each; a few dozen are tried with all other tests.
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load, save

from dmd_api.errors import BadInputError
from dmd_api.spec import Prompts
from dmd_trainer.conditions.prompts import read_prompts
from dmd_trainer.data.decoding import FORMATS, UndecodableError, decode
from dmd_trainer.data.shard import one_caption
from tests.trainer.data.sources import captions, encoded, grey, labels, opened, write_folder

COUNT = int(os.environ.get("DMD_DAMAGED", "30"))
"""Damaged files of each format."""
ROWS = 5
TEXTS = [f"picture {i}, größer" for i in range(ROWS)]


@dataclass(frozen=True)
class Case:
    """A format.

    Attributes:
        name: of the file.
        content: the whole file.
        ours: what we read of a damaged one; raises BadInputError.
        library: what the library reads of it; raises whatever it likes.
        noticed: whether what a truncated file lost is noticed; of lines of text it cannot be.
    """

    name: str
    content: bytes
    ours: Callable[[Path], Any]
    library: Callable[[bytes], Any]
    noticed: bool = True


def damaged(content: bytes, draws: np.random.Generator) -> tuple[bytes, str]:
    """The content after an accident, and which it was."""
    start, end = sorted(int(place) for place in draws.integers(0, len(content), 2))
    match kind := draws.choice(["truncated", "flipped", "zeroed", "inserted", "removed", "repeated"]):
        case "truncated":
            return content[:end], kind
        case "flipped":
            changed = bytearray(content)
            for place in draws.integers(0, len(content), draws.integers(1, 6)):
                changed[place] ^= 1 << int(draws.integers(8))
            return bytes(changed), kind
        case "zeroed":
            return content[:start] + bytes(min(end - start, 64)) + content[start + min(end - start, 64) :], kind
        case "inserted":
            return content[:start] + draws.bytes(int(draws.integers(1, 32))) + content[start:], kind
        case "removed":
            return content[:start] + content[start + min(end - start, 32) :], kind
    return content[:end] + content[start:], kind


def photograph(mode: str = "RGB") -> Image.Image:
    draws = np.random.default_rng(0)
    return Image.fromarray(draws.integers(0, 256, (24, 20, 3), dtype=np.uint8)).convert(mode)


ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[274] = 6


def by_pil(content: bytes) -> Any:
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        if upright.mode.startswith("I;16"):
            return (np.asarray(upright) >> 8).tolist()
        return np.asarray(upright.convert("L" if upright.mode in ("1", "L") else "RGB")).tolist()


def our_picture(path: Path) -> Any:
    try:
        return np.asarray(decode(path.read_bytes())).tolist()
    except UndecodableError as error:
        raise BadInputError(str(error)) from error  # an image set counts them, and names them


def our_images(path: Path) -> Any:
    images = opened(path)
    contents = [images.entry(index).content for index in range(len(images))]
    return contents, labels(images), captions(images)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for i in range(ROWS):
            for suffix, content in (("png", grey(i)), ("cls", str(i).encode()), ("txt", TEXTS[i].encode())):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def by_tarfile(content: bytes) -> Any:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            stem, _, suffix = member.name.partition(".")
            if member.isreg():
                found.setdefault(stem, {})[suffix.lower()] = tar.extractfile(member).read()  # type: ignore[union-attr]
    samples = [sample for sample in found.values() if "png" in sample]
    texts = [sample.get("txt", b"").decode("utf-8-sig").strip() for sample in samples]
    return [sample["png"] for sample in samples], [int(sample["cls"]) for sample in samples], texts


TABLE = pa.table({"image": [grey(i) for i in range(ROWS)], "label": list(range(ROWS)), "text": TEXTS})


def parquet(**options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer, row_group_size=2, **options)
    return buffer.getvalue()


def by_pyarrow(content: bytes) -> Any:
    table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    texts = [(text or "").strip() for text in table["text"].to_pylist()]
    return [row or b"" for row in table["image"].to_pylist()], table["label"].to_pylist(), texts


def our_arrays(path: Path) -> Any:
    images = opened(path)
    return [images.entry(index).content.tolist() for index in range(len(images))], labels(images)  # type: ignore[union-attr]


def by_safetensors(content: bytes) -> Any:
    tensors = load(content)
    classes = tensors.get("class_labels")
    samples = tensors["latents"].float().tolist()
    return samples, [None] * len(samples) if classes is None else classes.tolist()


METADATA = "".join(
    json.dumps({"file_name": f"{i}.png", "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(TEXTS)
)
TABLE_OF_TEXTS = "file_name,text\n" + "".join(f'{i}.png,"{text}"\n' for i, text in enumerate(TEXTS))
EDM = json.dumps({"labels": [[f"{i}.png", i + 3] for i in range(ROWS)]})


def beside(path: Path) -> Path:
    """A folder of pictures with the file beside them."""
    write_folder(path.parent, {f"{i}.png": grey(i) for i in range(ROWS)})
    return path.parent


def by_rows(rows: list[dict[str, Any]]) -> Any:
    known: dict[str, list[str]] = {}
    for row in rows:
        if row.get("text"):
            known.setdefault(row["file_name"].replace("\\", "/"), []).append(row["text"].strip())
    return [one_caption(known.get(name, []), name) for name in (f"{i}.png" for i in range(ROWS))]


def by_json_lines(content: bytes) -> Any:
    return by_rows(
        [json.loads(line) for line in io.StringIO(content.decode("utf-8-sig"), newline=None) if line.strip()]
    )


def by_csv(content: bytes) -> Any:
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=None), strict=True))
    assert not any(None in row for row in rows)
    return by_rows(rows)


def by_edm(content: bytes) -> Any:
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("labels") is None:
        return [None] * ROWS  # EDM's own code ends here; a teacher with classes refuses images that have none
    known = dict(found["labels"])
    return [known[f"{i}.png"] for i in range(ROWS)]


def by_lines(content: bytes) -> Any:
    found = [line.strip() for line in io.StringIO(content.decode("utf-8-sig"), newline=None)]
    return [line for line in found if line]


def our_prompts(path: Path) -> list[str]:
    return read_prompts(Prompts(uri=path.as_uri()), path.parent)


CASES = [
    Case("a.png", encoded(photograph()), our_picture, by_pil),
    Case("a.png", encoded(photograph("RGBA")), our_picture, by_pil),
    Case("a.png", encoded(photograph("P")), our_picture, by_pil),
    Case("a.jpg", encoded(photograph(), "JPEG", exif=ON_ITS_SIDE), our_picture, by_pil),
    Case("a.jpg", encoded(photograph("CMYK"), "JPEG"), our_picture, by_pil),
    Case("a.webp", encoded(photograph(), "WEBP"), our_picture, by_pil),
    Case("a.bmp", encoded(photograph(), "BMP"), our_picture, by_pil),
    Case("a.tar", tar(), our_images, by_tarfile),
    Case("a.parquet", parquet(compression="none"), our_images, by_pyarrow),
    Case("a.parquet", parquet(compression="zstd", write_page_checksum=True), our_images, by_pyarrow),
    Case(
        "a.safetensors",
        save({"latents": torch.arange(ROWS * 4.0).reshape(ROWS, 1, 2, 2), "class_labels": torch.arange(ROWS)}),
        our_arrays,
        by_safetensors,
    ),
    Case("metadata.jsonl", METADATA.encode(), lambda path: captions(opened(beside(path))), by_json_lines, False),
    Case("metadata.csv", TABLE_OF_TEXTS.encode(), lambda path: captions(opened(beside(path))), by_csv, False),
    Case("dataset.json", EDM.encode(), lambda path: labels(opened(beside(path))), by_edm),
    Case("prompts.txt", "\n".join(TEXTS).encode(), our_prompts, by_lines, False),
]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{case.name}" for n, case in enumerate(CASES)])
def test_damaged_files_are_refused_or_read_as_their_library_reads_them(number: int, tmp_path: Path) -> None:
    case, draws = CASES[number], np.random.default_rng(number)
    refusals: list[str] = []
    for attempt in range(COUNT):
        content, accident = damaged(case.content, draws)
        path = tmp_path / str(attempt) / case.name
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            theirs = case.library(content)
        except Exception as error:  # whatever it likes
            theirs = error
        try:
            ours = case.ours(path)
        except BadInputError as error:
            refusals.append(error.message)
            continue
        assert not isinstance(theirs, Exception), f"{attempt}, {accident}: {theirs!r}, and we read it"
        assert ours == theirs, f"{attempt}, {accident}"
        assert accident != "truncated" or not case.noticed or ours == case.library(case.content), (
            f"{attempt} lost something"
        )
    assert len(refusals) > COUNT // 10
    assert not any("\n" in refusal for refusal in refusals), "a message is a line"
