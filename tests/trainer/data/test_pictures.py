"""Pictures as they are meant to be seen: PIL is the oracle, where it says anything."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dmd_trainer.data import decoding
from dmd_trainer.data.decoding import UndecodableError, decode
from tests.trainer.data.sources import encoded, opened, pictures, write_folder

DRAWS = np.random.default_rng(0)
RGBA = Image.fromarray(DRAWS.integers(0, 256, (6, 9, 4), dtype=np.uint8))
SIXTEEN = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)


def on_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_stand_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(RGBA.convert("RGB"), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert expected.size == ((9, 6) if orientation < 5 else (6, 9))
    (found,) = pictures(opened(write_folder(tmp_path / "set", {f"a.{kind.lower()}": content})))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_show_white(kind: str) -> None:
    content = encoded(RGBA, kind, lossless=True)
    assert decode(content).tobytes() == on_white(Image.open(io.BytesIO(content))).tobytes()
    hidden = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
    assert decode(hidden).getpixel((0, 0)) == (255, 255, 255)


def test_every_kind_of_transparency_is_composed() -> None:
    palette = RGBA.convert("RGB").convert("P")
    sources = [
        encoded(RGBA.convert("LA")),
        encoded(palette, transparency=3),
        encoded(palette, transparency=bytes(range(0, 256, 2))),
        encoded(RGBA.convert("RGB"), transparency=RGBA.getpixel((0, 0))[:3]),  # type: ignore[index]
        encoded(RGBA.convert("L"), transparency=RGBA.convert("L").getpixel((0, 0))),
    ]
    for source in sources:
        picture = Image.open(io.BytesIO(source))
        assert picture.has_transparency_data
        assert decode(source).tobytes() == on_white(picture).tobytes(), picture.mode


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("CMYK", "JPEG"), ("L", "JPEG")]
)
def test_opaque_modes_are_pils(mode: str, kind: str) -> None:
    content = encoded(RGBA.convert("RGB").convert(mode), kind)
    expected = Image.open(io.BytesIO(content)).convert("L" if mode in ("1", "L") else "RGB")
    found = decode(content)
    assert (found.mode, found.tobytes()) == (expected.mode, expected.tobytes())


def test_sixteen_bits_are_scaled_not_cut() -> None:
    content = encoded(Image.fromarray(SIXTEEN))
    assert Image.open(io.BytesIO(content)).mode == "I;16"
    assert np.asarray(decode(content)).tolist() == [[0, 0, 1, 128, 255]]
    clear = encoded(Image.fromarray(SIXTEEN), transparency=32768)
    assert np.asarray(decode(clear))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def png_of(width: int, height: int) -> bytes:
    """A PNG of so many pixels and next to no bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_may_not_be_decoded_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndecodableError, match=r"12000x12000 pixels, and at most 89,478,485 are read"):
        decode(png_of(12_000, 12_000))
    with pytest.raises(UndecodableError, match="decompression bomb"):
        decode(png_of(60_000, 60_000))
    for kind in ("GIF", "TIFF", "PPM"):
        with pytest.raises(UndecodableError, match="neither of PNG, JPEG, WEBP, BMP"):
            decode(encoded(RGBA.convert("RGB"), kind))
    with pytest.raises(UndecodableError, match="it is empty"):
        decode(b"")
    # Formats with 32 bits are not on the list; if one ever is, its range is still not known.
    monkeypatch.setattr(decoding, "FORMATS", ("TIFF",))
    for array in (SIXTEEN.astype(np.int32), SIXTEEN.astype(np.float32)):
        with pytest.raises(UndecodableError, match="32 bits a pixel"):
            decode(encoded(Image.fromarray(array), "TIFF"))
