"""Glyphs are functions of their numbers, and the sets of them do not meet."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from dmd_api.spec import Location
from dmd_trainer.data.formats.glyphs import SETS
from dmd_trainer.data.glyphs import CLASSES, HELD_OUT, LETTERS, SIZE, draw_glyph, draw_glyphs
from dmd_trainer.data.image_set import ImageSet
from dmd_trainer.diffusion.solvers import heun
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime.fetch import local_path

NUMBERS = (0, 1, 25, 26, 999_999, HELD_OUT, HELD_OUT + 49_999)
DIGEST = "9ab3ba866f08a233a05fd79cba5b7409d9de33e213586195c323c1ed043cb661"
"""Of the images of these numbers, by the versions in constraints.txt."""
PRINTED = f"""
import hashlib
from dmd_trainer.data.glyphs import draw_glyph
print(hashlib.sha256(b"".join(draw_glyph(number).tobytes() for number in {NUMBERS})).hexdigest())
"""


def test_the_same_numbers_give_the_same_bytes_in_every_process() -> None:
    here = hashlib.sha256(b"".join(draw_glyph(number).tobytes() for number in NUMBERS)).hexdigest()
    there = subprocess.run([sys.executable, "-c", PRINTED], check=True, capture_output=True, text=True).stdout.strip()
    assert here == there == DIGEST


def test_no_two_images_are_the_same() -> None:
    seen = {draw_glyph(number).tobytes() for number in range(0, 2_600, CLASSES)}
    assert len(seen) == 100, "a hundred of one letter"


def test_letters_come_in_turn_and_can_be_seen() -> None:
    images, labels = draw_glyphs(range(HELD_OUT, HELD_OUT + 52))
    assert images.shape == (52, 3, SIZE, SIZE)
    assert [LETTERS[label] for label in labels[:3].tolist()] == [
        LETTERS[(HELD_OUT + index) % CLASSES] for index in range(3)
    ]
    assert images.min() >= -1
    assert images.max() <= 1
    assert (images.amax((2, 3)) - images.amin((2, 3))).amax(1).min() > 0.2, "letter and paper differ in a colour"


def test_what_is_measured_against_is_never_trained_on(tmp_path: Path) -> None:
    (trained, count), (held_out, held_out_count) = SETS["builtin://glyphs"], SETS["builtin://glyphs-held-out"]
    assert trained + count <= held_out or held_out + held_out_count <= trained
    found = ImageSet(Location(uri="builtin://glyphs-held-out"), "spec.evaluation.reference", tmp_path)
    assert len(found) == held_out_count
    (row,) = found.read([3], lambda picture: picture)
    assert row is not None
    expected, label = draw_glyphs([held_out + 3])
    torch.testing.assert_close(row[0], expected[0], rtol=0, atol=0)
    assert row[1] == int(label)
    assert np.isfinite(row[0].numpy()).all()


def test_its_teacher_draws_letters_that_the_classifier_reads(tmp_path: Path) -> None:
    teacher = load_teacher(local_path("builtin://glyphs-teacher", tmp_path))
    assert sum(p.stat().st_size for p in teacher.directory.rglob("*") if p.is_file()) < 8_000_000
    labels = torch.arange(2 * CLASSES) % CLASSES
    noise = torch.randn(len(labels), *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    images = heun(teacher.denoiser, teacher.denoiser.schedule, noise, {"class_labels": labels}, steps=18)
    extractor = load_features(Location(uri="builtin://glyphs-classifier"), Path(), torch.device("cpu"))
    _, found = extractor.extract(images.clamp(-1, 1))
    assert found is not None
    assert (found == labels).double().mean() > 0.8


def test_its_classifier_tells_the_letters_apart() -> None:
    images, labels = draw_glyphs(range(HELD_OUT + 10_000, HELD_OUT + 10_260))
    extractor = load_features(Location(uri="builtin://glyphs-classifier"), Path(), torch.device("cpu"))
    features, found = extractor.extract(images)
    assert features.shape == (260, 64)
    assert found is not None
    assert (found == labels).double().mean() > 0.98
