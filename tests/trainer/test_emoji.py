"""The emoji example's assets: its glyphs, its CLIP and its teacher, loaded with the libraries' own classes."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dmd_trainer.data.emoji import SIZE, load_emoji, retrieval_ranks
from dmd_trainer.runtime.fetch import ASSETS

CLIP, TEACHER = ASSETS / "emoji-clip", ASSETS / "emoji-teacher"


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(CLIP).eval()


def test_the_glyphs_are_on_white_and_no_caption_occurs_twice() -> None:
    images, captions = load_emoji()
    assert images.shape == (len(captions), 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert len(set(captions)) == len(captions) > 1300
    assert {"red apple", "cat face", "slice of pizza", "rocket"} <= set(captions)
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 0.9).all(1).float().mean() > 0.8


def test_the_assets_are_small_and_each_has_a_card() -> None:
    folders = [ASSETS / "emoji", CLIP, TEACHER]
    assert all((folder / "README.md").is_file() for folder in folders)
    assert sum(size(folder) for folder in folders) < 20e6
    assert size(CLIP) <= 5e6
    assert size(TEACHER) < 12e6


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_clip_finds_the_glyphs_of_captions(clip: CLIPModel) -> None:
    images, captions = load_emoji()
    tokenizer, processor = CLIPTokenizer.from_pretrained(CLIP), CLIPImageProcessor.from_pretrained(CLIP)
    pixels = processor(images[:4] / 2 + 0.5, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, images[:4], atol=1e-5, rtol=0)
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip(**tokens, pixel_values=images).logits_per_text
    assert logits.argmax(1).eq(torch.arange(len(images))).float().mean() > 0.85


def test_a_glyph_is_the_nearest_to_itself(clip: CLIPModel) -> None:
    images, _ = load_emoji()
    chosen = torch.arange(0, len(images), 40)
    assert retrieval_ranks(images[chosen], chosen, images, clip).eq(0).all()


def test_the_teacher_draws_what_prompts_say(clip: CLIPModel) -> None:
    images, captions = load_emoji()
    pipeline = StableDiffusionPipeline.from_pretrained(TEACHER)
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32
    pipeline.set_progress_bar_config(disable=True)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:24]
    drawn = pipeline(
        [captions[i] for i in chosen],
        num_inference_steps=50,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert drawn.shape == (24, 3, SIZE, SIZE)
    ranks = retrieval_ranks(drawn * 2 - 1, chosen, images, clip)
    assert (ranks < 1).float().mean() > 0.6
    assert (ranks < 5).float().mean() > 0.85
