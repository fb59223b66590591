"""The glyphs: letters drawn on demand in the fonts that ship with matplotlib, without an end.

Nobody can learn them by heart: an image is a function of its number, every number is another image, and what one was
trained on and what one is measured against are ranges of numbers that do not meet.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from dmd_trainer.diffusion.randomness import KeyedRandom

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLASSES = len(LETTERS)
SIZE = 16
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
OVERSAMPLED = 4
"""A letter is drawn this many times larger, turned there, and averaged down."""
CANVAS = SIZE * OVERSAMPLED
HEIGHTS = (44, 61)
"""Pixels per em on the canvas: from, up to but not."""
LARGEST_TURN, LARGEST_SHEAR, LARGEST_SHIFT = 0.26, 0.2, 5
"""Radians (15 degrees), of a letter's height, and pixels of the canvas; each is uniform, in both directions."""
INKS = 4
"""Of so many random colours, the one whose brightness differs most from the paper's is the letter's."""
LUMINANCE = np.array([299, 587, 114])
"""How bright red, green and blue are, in thousandths (ITU-R BT.601)."""
TRAINING, HELD_OUT = 0, 1 << 32
"""The first numbers of the images to train on, and of those that nothing is trained on."""


def draw_glyphs(numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
    """The images of these numbers [B, 3, 16, 16] in [-1, 1], float32, and their classes [B], int64.

    The class is the number's remainder: all letters come in turn.
    """
    numbers = list(numbers)
    pictures = np.stack([draw_glyph(number) for number in numbers])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([number % CLASSES for number in numbers])


def draw_glyph(number: int) -> np.ndarray:
    """The image of a number: uint8 [16, 16, 3]."""
    random = KeyedRandom(0, "glyphs", 0, [number])

    def uniform(limit: float) -> float:
        return limit * (2 * float(random.integers(0, 1 << 16)) / ((1 << 16) - 1) - 1)

    font = _font(FONTS[int(random.integers(0, len(FONTS)))], int(random.integers(*HEIGHTS)))
    x, y = (CANVAS / 2 + uniform(LARGEST_SHIFT) for _ in "xy")
    turn, shear = uniform(LARGEST_TURN), uniform(LARGEST_SHEAR)
    colours = np.array([[int(random.integers(0, 256)) for _ in "rgb"] for _ in range(1 + INKS)])
    mask = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(mask).text((CANVAS / 2, CANVAS / 2), LETTERS[number % CLASSES], fill=255, font=font, anchor="mm")
    mask = mask.transform(mask.size, Image.Transform.AFFINE, _affine(x, y, turn, shear), Image.Resampling.BILINEAR)
    ink = np.asarray(mask.reduce(OVERSAMPLED), np.int64)[..., None]
    paper, *inks = colours
    brightness = colours @ LUMINANCE
    letter = inks[int(np.abs(brightness[1:] - brightness[0]).argmax())]
    # In whole numbers, so that no platform rounds otherwise.
    return ((paper * (255 - ink) + letter * ink + 127) // 255).astype(np.uint8)


def _affine(x: float, y: float, turn: float, shear: float) -> tuple[float, float, float, float, float, float]:
    """Pillow's coefficients, from a point of the picture to the canvas: its middle goes to x, y, turned and sheared."""
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    a, b, c, d = cos + shear * sin, -sin + shear * cos, sin, cos
    middle = CANVAS / 2
    return a, b, middle - a * x - b * y, c, d, middle - c * x - d * y


@cache
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout is Pillow's own; the other one is only there with a library of the system's.
    return ImageFont.truetype(path, height, layout_engine=ImageFont.Layout.BASIC)


class GlyphsClassifier(nn.Module):
    """A small convolutional classifier, whose 64 penultimate features stand in for Inception for glyphs."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.hidden = nn.Linear(128 * 4, 64)
        self.head = nn.Linear(64, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 64] of images [B, 3, 16, 16] in [-1, 1]."""
        x = F.max_pool2d(F.silu(self.conv1(images)), 2)
        x = F.max_pool2d(F.silu(self.conv2(x)), 2)
        x = F.max_pool2d(F.silu(self.conv3(x)), 2)
        return F.silu(self.hidden(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 26] of images [B, 3, 16, 16] in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits
