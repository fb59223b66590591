"""The emoji: the glyphs of Noto Color Emoji at 32x32 pixels, each captioned with its Unicode name.

They are the data of the shipped text-to-image example, small enough that a latent diffusion teacher trains on a CPU.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dmd_trainer.runtime.fetch import ASSETS

if TYPE_CHECKING:
    from transformers import CLIPModel

DATA = ASSETS / "emoji" / "emoji.parquet"
SIZE = 32


def load_emoji(path: Path = DATA) -> tuple[Tensor, list[str]]:
    """All glyphs [N, 3, 32, 32] in [-1, 1], float32, on white, and their N captions, each of which occurs once.

    Args:
        path: a parquet file with a column `image` of encoded pictures and a column `text` of captions.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["image", "text"])
    images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in table["image"].to_pylist()]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return pixels / 127.5 - 1, table["text"].to_pylist()


@torch.no_grad()
def retrieval_ranks(pictures: Tensor, chosen: Tensor, glyphs: Tensor, clip: "CLIPModel") -> Tensor:
    """How near the right glyph is to each picture, among all glyphs: 0 where it is the nearest.

    Args:
        pictures: [B, 3, 32, 32] in [-1, 1].
        chosen: [B], the indices of the glyphs that they should show.
        glyphs: [N, 3, 32, 32] in [-1, 1].
        clip: the network in whose image features the cosine is taken.
    """
    shown, known = (F.normalize(clip.get_image_features(images).pooler_output, dim=1) for images in (pictures, glyphs))
    similarity = shown @ known.T
    return (similarity > similarity.gather(1, chosen[:, None])).sum(1)
