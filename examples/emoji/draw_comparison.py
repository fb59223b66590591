"""Draws what teacher and one-step generator make of the same prompts and noise: the README's picture.

    python examples/emoji/draw_comparison.py trainer/dmd_trainer/assets/emoji-teacher GENERATOR docs/images/emoji.png

GENERATOR is the pipeline that a run of `examples/distill-emoji.yaml` exported. Both are stock diffusers pipelines.
"""

from pathlib import Path
from typing import Any

import matplotlib
import torch
import typer
from diffusers import StableDiffusionPipeline

PROMPTS = [
    "red apple", "cat face", "slice of pizza", "rocket", "octopus", "sunflower", "soccer ball", "grinning face",
    "house with garden", "red heart", "rainbow", "fire engine",
]  # fmt: skip
TEACHER_STEPS, GUIDANCE = 50, 3.0
SCALE = 3
"""Pixels of the picture for each of an image's."""


def draw(pipeline: Any, prompts: list[str], **arguments: Any) -> torch.Tensor:
    """Images [N, 3, H, W] in [0, 1], each from noise that is the same for every pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images: torch.Tensor = pipeline(prompts, generator=noise, output_type="pt", **arguments).images
    return images


def main(teacher: Path, generator: Path, out: Path, prompt: list[str] | None = None) -> None:
    """Draws the pictures of TEACHER and GENERATOR for the same prompts and noise, and writes them to OUT."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    prompts = prompt or PROMPTS
    rows = {
        f"teacher, {TEACHER_STEPS} steps": draw(
            StableDiffusionPipeline.from_pretrained(teacher),
            prompts,
            num_inference_steps=TEACHER_STEPS,
            guidance_scale=GUIDANCE,
        ),
        "one step": draw(
            StableDiffusionPipeline.from_pretrained(generator), prompts, num_inference_steps=1, guidance_scale=0.0
        ),
    }
    figure, axes = pyplot.subplots(len(rows), len(prompts), figsize=(1.0 * len(prompts), 2.35), layout="constrained")
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, text in zip(axes[0], prompts, strict=True):
        axis.set_title(text.replace(" ", "\n", 1) if len(text) > 12 else text, fontsize=8)
    figure.savefig(out, dpi=100 * SCALE / 2)


if __name__ == "__main__":
    typer.run(main)
