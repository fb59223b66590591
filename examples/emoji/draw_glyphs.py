"""Draws the emoji example's data: Noto Color Emoji's glyphs with their Unicode names, as one parquet file.

    apt-get install fonts-noto-color-emoji
    python examples/emoji/draw_glyphs.py trainer/dmd_trainer/assets/emoji

Glyphs of single code points only: no flags, no skin tones, no sequences. Names come from Python's `unicodedata`, so
a newer Python knows a few more of them.
"""

import io
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from dmd_trainer.data.emoji import SIZE

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP = 109
"""The only size in pixels per em that the font's bitmaps (its table CBDT) have; they are 136 x 128."""
CANVAS = 136
ASCII_END = 0x80
PRIVATE_USE = 0xE0000
"""From here on the font maps only tags and code points of its own."""
PARTS = ("regional indicator", "emoji modifier", "combining", "zero width", "variation selector")
"""How the names of code points begin that are parts of flags, skin tones and keycaps."""

CARD = """---
license: apache-2.0
tags: [emoji, text-to-image]
---
# emoji

The {count:,} glyphs of the data of dmd-operator's emoji example: `emoji.parquet` with the columns `image` (PNG, RGB,
32x32, on white) and `text` (the Unicode name in lower case; each occurs once).

- Source: Noto Emoji, copyright 2013-2022 Google Inc., by way of the font in Debian's `fonts-noto-color-emoji`,
  version {version}. The font's licence is the SIL Open Font License 1.1, the pictures' (the files that the font is
  made of) the Apache License 2.0. The pictures here were drawn with the font and made smaller.
- Names: the Unicode Character Database {unidata}.
- Left out: flags, skin tones, sequences of code points, and glyphs that look exactly like one before them.
- Made by `examples/emoji/draw_glyphs.py`.
"""


def draw(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph in colour on white, 32x32."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
    ImageDraw.Draw(canvas).text((CANVAS // 2, CANVAS // 2), glyph, font=font, embedded_color=True, anchor="mm")
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main(out: Path, font: Path = FONT) -> None:
    """Draws the glyphs of FONT and writes them to OUT."""
    tables = TTFont(font)
    bitmaps = ImageFont.truetype(str(font), BITMAP)
    blank = Image.new("RGB", (SIZE, SIZE), "white").tobytes()
    seen, images, texts = {blank}, [], []
    for code in sorted(tables.getBestCmap()):
        name = unicodedata.name(chr(code), "").lower()
        if not (ASCII_END <= code < PRIVATE_USE) or not name or name.startswith(PARTS):
            continue
        picture = draw(chr(code), bitmaps)
        if picture.tobytes() in seen:
            continue
        seen.add(picture.tobytes())
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        images.append(buffer.getvalue())
        texts.append(name)
    out.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, out / "emoji.parquet", compression="zstd")
    card = CARD.format(
        count=len(texts), version=f"{tables['head'].fontRevision:.3f}", unidata=unicodedata.unidata_version
    )
    (out / "README.md").write_text(card)
    typer.echo(f"{len(texts)} glyphs, {(out / 'emoji.parquet').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
