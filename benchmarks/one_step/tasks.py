"""What the methods are compared on: a teacher, the data that it was trained on, and what is measured against."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from dmd_trainer.data import glyphs
from dmd_trainer.data.digits import load_digits_images
from dmd_trainer.data.formats.glyphs import SETS
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.evaluation.features import ClassifierFeatures
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.runtime.fetch import local_path

GLYPHS = 100_000
"""How many of the million training images the methods that read real images get, drawn once and kept."""
CHUNK = 500


@dataclass(frozen=True)
class Task:
    """One teacher's comparison.

    Attributes:
        name: as results are stored by.
        teacher: frozen.
        images: the teacher's training data [N, C, H, W]: uint8, or float32 in [-1, 1].
        labels: their classes [N].
        classes: how many there are.
        classifier: in whose features samples are measured.
        reference: the images [M, C, H, W] that they are measured against.
        pair_steps: of Heun's method, for an ODE pair.
        batch: samples an update.
    """

    name: str
    teacher: Teacher
    images: Tensor
    labels: Tensor
    classes: int
    classifier: str
    reference: Callable[[], Tensor]
    pair_steps: int
    batch: int

    def __len__(self) -> int:
        return len(self.images)

    def at(self, indices: Tensor) -> tuple[Tensor, Condition]:
        """Training images [B, C, H, W] in [-1, 1] and their condition; what the GAN term reads, too."""
        return in_range(self.images[indices]), {"class_labels": self.labels[indices]}

    def prefetch(self, indices: Tensor) -> None:
        """They are in memory."""

    @cache  # noqa: B019 - a task lives as long as the process
    def features(self) -> tuple[ClassifierFeatures, Tensor]:
        """The classifier, and the reference's features [M, D]."""
        extractor = ClassifierFeatures(self.classifier)
        with torch.inference_mode():
            found = [extractor.extract(in_range(part))[0] for part in self.reference().split(CHUNK)]
        return extractor, torch.cat(found)


def in_range(images: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1]; what is float already is that."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


@cache
def digits() -> Task:
    """The teacher of the quick example. Its data are so few that they are the reference as well."""
    images, labels = load_digits_images()
    return Task(
        name="digits",
        teacher=load_teacher(local_path("builtin://digits-teacher", Path())),
        images=images,
        labels=labels,
        classes=10,
        classifier="digits-classifier",
        reference=lambda: images,
        pair_steps=18,
        batch=64,
    )


@cache
def glyphs_task() -> Task:
    """The letters, measured against 50,000 that nothing was trained on."""
    return Task(
        name="glyphs",
        teacher=load_teacher(local_path("builtin://glyphs-teacher", Path())),
        images=drawn(SETS["builtin://glyphs"][0], GLYPHS),
        labels=torch.arange(GLYPHS) % glyphs.CLASSES,
        classes=glyphs.CLASSES,
        classifier="glyphs-classifier",
        reference=lambda: drawn(*SETS["builtin://glyphs-held-out"]),
        # As good as 18: FID 3.04 beside 3.2, and 8 have 5.5.
        pair_steps=12,
        # Better than 64 and 16 in the search: docs/method.md.
        batch=32,
    )


def drawn(first: int, count: int) -> Tensor:
    """`count` glyphs from the number `first` on, uint8 [N, 3, 16, 16]; kept below the user's cache, a minute's work."""
    version = sha256(Path(glyphs.__file__).read_bytes()).hexdigest()[:12]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmd-operator" / "benchmarks"
    file = cached / f"glyphs-{version}-{first}-{count}.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    pictures = torch.stack([torch.from_numpy(glyphs.draw_glyph(number)) for number in range(first, first + count)])
    pictures = pictures.permute(0, 3, 1, 2).contiguous()
    cached.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    torch.save(pictures, part)
    part.replace(file)
    return pictures


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "glyphs": glyphs_task}
