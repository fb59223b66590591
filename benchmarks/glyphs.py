"""What the glyph task's measure can tell: its floor, which is the FID of real images against other real ones.

A sampler that draws exactly from the data scores this and no less; what is well above it is the sampler's own doing.
"""

import time
from typing import Any

import torch

from dmd_trainer.data.formats.glyphs import SETS
from dmd_trainer.data.glyphs import draw_glyphs
from dmd_trainer.evaluation.features import ClassifierFeatures
from dmd_trainer.evaluation.metrics import frechet_distance

COUNTS = (2_000, 10_000, 50_000)
BATCH = 500


@torch.no_grad()
def run() -> dict[str, Any]:
    """The floor for several numbers of samples, each against the 50,000 images that are held out."""
    extractor = ClassifierFeatures("glyphs-classifier")
    first, count = SETS["builtin://glyphs-held-out"]
    started, spent = time.process_time(), 0.0

    def features(start: int, images: int) -> torch.Tensor:
        nonlocal spent
        found = []
        for begin in range(start, start + images, BATCH):
            before = time.process_time()
            drawn, _ = draw_glyphs(range(begin, min(begin + BATCH, start + images)))
            spent += time.process_time() - before
            found.append(extractor.extract(drawn)[0])
        return torch.cat(found)

    reference = features(first, count)
    others = features(first + count, max(COUNTS))
    floors = {str(images): round(frechet_distance(reference, others[:images]), 5) for images in COUNTS}
    result = {
        "reference": count,
        "floor": floors,
        "millisecondsToDrawOne": round(1000 * spent / (count + max(COUNTS)), 3),
        "processorSeconds": round(time.process_time() - started, 1),
    }
    print(result)
    return result
