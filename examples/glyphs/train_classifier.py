"""Trains the classifier whose features measure the glyph task, and writes it with its model card.

    python examples/glyphs/train_classifier.py trainer/dmd_trainer/assets/glyphs-classifier

Its images are drawn as they are needed, from numbers that neither the teacher nor a measurement takes.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from safetensors.torch import save_file

from dmd_trainer.data.glyphs import CLASSES, FONTS, HELD_OUT, GlyphsClassifier, draw_glyphs

FIRST = 1 << 31
"""The number of the first image that it sees."""
TESTED = 5_200

CARD = """---
license: apache-2.0
library_name: dmd-operator
tags: [glyphs, image-classification]
---
# glyphs-classifier

A convolutional classifier of 16x16 letters in colour. dmd-operator computes the Frechet distance, precision, recall and
class accuracy of its glyph task in the 64 penultimate features of this network.

- Data: capital letters drawn on demand in {fonts} fonts that ship with matplotlib (`dmd_trainer.data.glyphs`).
- Input: [B, 3, 16, 16] in [-1, 1]. Code: `dmd_trainer.data.glyphs.GlyphsClassifier`.
- Training: {steps:,} steps of Adam, batch {batch}, no image twice, seed {seed}.
- Accuracy on {tested:,} images that it did not see: {accuracy:.2%}.
- Made by `examples/glyphs/train_classifier.py`.
"""


def main(out: Path, steps: int = 3_000, batch: int = 128, seed: int = 0) -> None:
    """Trains the classifier and writes it to OUT."""
    torch.manual_seed(seed)
    model = GlyphsClassifier().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in track(range(steps), description="training"):
        start = FIRST + step * batch
        images, labels = draw_glyphs(range(start, start + batch))
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    images, labels = draw_glyphs(range(HELD_OUT, HELD_OUT + TESTED))
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).double().mean().item()
    typer.echo(f"accuracy: {accuracy:.2%}")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "model.safetensors")
    config = {"class": "GlyphsClassifier", "features": 64, "classes": CLASSES}
    (out / "config.json").write_text(json.dumps(config) + "\n")
    card = CARD.format(fonts=len(FONTS), steps=steps, batch=batch, seed=seed, tested=TESTED, accuracy=accuracy)
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    typer.run(main)
