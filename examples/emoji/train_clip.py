"""Trains the emoji example's CLIP on glyphs and their captions, and writes it in transformers' format.

    python examples/emoji/train_clip.py trainer/dmd_trainer/assets/emoji-clip

CLIP as published (Radford et al. 2021, arXiv 2103.00020), very small. Its text model is the text encoder of the
teacher's pipeline (`train_teacher.py`); its image features are what the example is measured in.
"""

import json
import random
import string
from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dmd_trainer.data.emoji import SIZE, load_emoji

VOCABULARY = 2048
CONTEXT = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [emoji, clip]
---
# emoji-clip

A CLIP of {parameters:,} parameters for 32x32 emoji. Its text model is the text encoder of dmd-operator's emoji teacher;
its image features measure the emoji example (Frechet distance, retrieval, CLIP score).

- Data: the {count:,} glyphs of Noto Color Emoji with their Unicode names that ship as `assets/emoji`.
- Input: pixels in [-1, 1]; lower-case captions, at most {context} tokens of a byte pair vocabulary of {vocabulary:,}
  learned from them.
- Training: {steps:,} steps of AdamW, batch {batch}, learning rate {learning_rate} with a cosine decay, seed {seed};
  glyphs rotated by up to 10 degrees, scaled by 0.85 to 1.1, shifted by up to 2 pixels, a little blurred or noisy;
  each word of a caption left out one time in ten.
- On the training data: an augmented glyph's nearest glyph is the right one for {image:.1%}; a caption's nearest glyph
  is the right one for {text:.1%}.
- Made by `examples/emoji/train_clip.py`.
"""


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary learned from the captions."""
    learned = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    learned.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BOS, EOS],
            initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(learned.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
    )


def augment(images: Tensor) -> Tensor:
    """Rotates, scales and shifts images [B, 3, 32, 32] on white, and makes some blurred or noisy."""
    batch = len(images)
    angle = (torch.rand(batch) * 2 - 1) * torch.pi / 18
    scale = 1 / (0.85 + 0.25 * torch.rand(batch))
    shift = (torch.rand(batch, 2) * 2 - 1) * 2 * 2 / SIZE
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, grid, align_corners=False) + 1  # the background is 1, the padding 0
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur, noise = torch.rand(2, batch, 1, 1, 1)
    return moved.lerp(blurred, blur.square()) + 0.2 * noise.pow(3) * torch.randn_like(moved)


def drop_words(caption: str, probability: float) -> str:
    """The caption without some of its words, but with at least one."""
    words = caption.split()
    return " ".join([word for word in words if random.random() >= probability] or [random.choice(words)])


@torch.no_grad()
def retrieval(model: CLIPModel, images: Tensor, tokens: Tensor) -> tuple[float, float]:
    """How often the nearest glyph is the right one: of augmented glyphs, and of captions."""
    features = F.normalize(model.get_image_features(images).pooler_output, dim=1)
    moved = F.normalize(model.get_image_features(augment(images)).pooler_output, dim=1)
    texts = F.normalize(model.get_text_features(tokens).pooler_output, dim=1)
    right = torch.arange(len(images))
    return tuple((queries @ features.T).argmax(1).eq(right).float().mean().item() for queries in (moved, texts))


def main(
    out: Path, steps: int = 2_000, batch: int = 128, learning_rate: float = 1e-3, dropped: float = 0.1, seed: int = 0
) -> None:
    """Trains the CLIP and writes it to OUT."""
    torch.manual_seed(seed)
    random.seed(seed)
    images, captions = load_emoji()
    tokenizer = make_tokenizer(captions)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    layers = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {"vocab_size": len(tokenizer), "intermediate_size": 256, "max_position_embeddings": CONTEXT} | special
    vision = {"intermediate_size": 384, "image_size": SIZE, "patch_size": 8}
    model = CLIPModel(
        CLIPConfig(
            text_config=layers | text | {"pad_token_id": tokenizer.pad_token_id},
            vision_config=layers | vision,
            projection_dim=64,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    smoothed = 0.0
    for step in track(range(steps), description="training"):
        chosen = torch.randperm(len(images))[:batch]
        tokens = tokenize([drop_words(captions[i], dropped) for i in chosen.tolist()])
        loss = model(input_ids=tokens, pixel_values=augment(images[chosen]), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)  # at most 100, as published
        smoothed += (loss.item() - smoothed) * max(0.01, 1 / (step + 1))
        if step % 250 == 249:
            found = retrieval(model.eval(), images, tokenize(captions))
            model.train()
            typer.echo(f"step {step + 1}: loss {smoothed:.3f}, glyphs {found[0]:.1%}, captions {found[1]:.1%}")
    found = retrieval(model.eval(), images, tokenize(captions))
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # so that pixels are in [-1, 1]
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, **statistics).save_pretrained(out)
    card = CARD.format(
        parameters=model.num_parameters(), count=len(images), context=CONTEXT, vocabulary=len(tokenizer), steps=steps,
        batch=batch, learning_rate=learning_rate, seed=seed, image=found[0], text=found[1],
    )  # fmt: skip
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    typer.run(main)
