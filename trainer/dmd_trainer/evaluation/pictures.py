"""Pictures for people: image grids, the picture of a training, and its curves."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 48
"""Images smaller than this are enlarged, in whole multiples, so that their pixels can be seen."""


def image_grid(images: Tensor, columns: int = 10) -> Image.Image:
    """Images [N, C, H, W] in [-1, 1] as a grid, `columns` a row."""
    grid = make_grid(_enlarge((images.detach().float().cpu().clamp(-1, 1) + 1) / 2), nrow=columns, pad_value=1.0)
    return Image.fromarray((grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as a tensor [N, C, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 127.5 - 1
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def _enlarge(images: Tensor) -> Tensor:
    factor = max(1, -(-TILE // images.shape[-1]))
    return images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def training_picture(teacher: Tensor, steps: Mapping[int, Tensor], title: str) -> Image.Image:
    """The teacher's images on top, the one-step generator's for the same noise at several training steps below.

    Args:
        teacher: [N, C, H, W] in [-1, 1].
        steps: by generator update, images like `teacher`.
        title: one line.
    """
    rows = [("teacher", teacher), *((f"step {step:,}", images) for step, images in sorted(steps.items()))]
    count = len(teacher)
    figure = _figure(0.62 * count + 1.3, 0.62 * len(rows) + 0.5)
    figure.suptitle(title, fontsize=9, x=0.02, ha="left", y=0.985)
    axes = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"hspace": 0.04})[:, 0]
    for axis, (label, images) in zip(axes, rows, strict=True):
        axis.imshow(image_grid(images, columns=count), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_ylabel(
            label, rotation=0, ha="right", va="center", fontsize=8, color="#0b5394" if label == "teacher" else "#222"
        )
    figure.subplots_adjust(
        left=1.0 / (0.62 * count + 1.3), right=0.995, top=1 - 0.36 / (0.62 * len(rows) + 0.5), bottom=0.01
    )
    return _render(figure)


def curves_picture(
    losses: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]], teacher_fid: float
) -> Image.Image:
    """FID and losses over generator updates, logarithmic, the teacher's FID as a line.

    Args:
        losses: {"step": ..., loss: ...} rows.
        evaluations: {"step": ..., "FID": ...} rows.
        teacher_fid: the teacher's own.
    """
    figure = _figure(8.4, 3.0)
    left, right = figure.subplots(1, 2)
    left.plot(
        [e["step"] for e in evaluations],
        [e["FID"] for e in evaluations],
        marker="o",
        markersize=3,
        label="generator (EMA)",
    )
    left.axhline(teacher_fid, color="#888", linestyle="--", linewidth=1, label="teacher")
    left.set_ylabel("FID")
    for name in [key for key in (losses[-1] if losses else {}) if key != "step"]:
        right.plot(
            [row["step"] for row in losses], [row[name] for row in losses], linewidth=0.9, label=name.replace("_", " ")
        )
    right.set_ylabel("loss")
    for axis in (left, right):
        axis.set_yscale("log")
        axis.set_xlabel("generator updates")
        axis.grid(True, alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return _render(figure)


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130)


def _render(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
