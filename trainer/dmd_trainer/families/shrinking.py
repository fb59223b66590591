"""A teacher of a published architecture made so small, and with random weights, that a laptop trains with it.

Classes, kinds of blocks, number of levels, conditions and noise schedule are the real one's; widths, layers and sizes
are not. It is what `dmdctl run --shrink` rehearses a recipe with.
"""

import json
from pathlib import Path
from typing import Any

import torch

from dmd_trainer.families.architecture import Architecture
from dmd_trainer.families.family import GROUPS, WIDTH, Family
from dmd_trainer.families.networks import ship_code
from dmd_trainer.runtime.fetch import ASSETS


def save_shrunken_teacher(architecture: Architecture, folder: Path, width: int = WIDTH) -> None:
    """Writes a teacher in diffusers format; the same one every time.

    Args:
        architecture: the real one's.
        folder: where to.
        width: channels of the network's narrowest level.
    """
    torch.manual_seed(0)
    family, scheduler = architecture.family, architecture.scheduler
    config = family.shrink(architecture.network, width)
    network = family.network_class(config).from_config(config)
    network.save_pretrained(folder / family.part)
    _write_config(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {
        key: ["diffusers", value["_class_name"]] for key, value in ((family.part, config), ("scheduler", scheduler))
    }
    if architecture.decoder is not None:
        parts |= _save_text_parts(family, architecture.decoder, folder)
    pipeline = family.pipelines[0] if family.takes_text else "DiffusionPipeline"
    _write_config(folder / "model_index.json", {"_class_name": pipeline} | parts)
    if family.carries_code(network):
        ship_code(folder)


def _save_text_parts(family: Family, decoder: dict[str, Any], folder: Path) -> dict[str, list[str | None]]:
    """Writes the VAE, the CLIP text encoders and their tokenizers; what the pipeline's index says of them."""
    import transformers
    from diffusers import AutoencoderKL

    AutoencoderKL.from_config(small_decoder(decoder)).save_pretrained(folder / "vae")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(ASSETS / "emoji-clip")
    text = small_text_config(tokenizer)
    parts: dict[str, list[str | None]] = {"vae": ["diffusers", "AutoencoderKL"]}
    for suffix, encoder in zip(("", "_2"), family.encoders, strict=False):
        getattr(transformers, encoder)(text).save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        parts |= {
            f"text_encoder{suffix}": ["transformers", encoder],
            f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"],
        }
    return parts | {part: [None, None] for part in family.absent}


def small_decoder(decoder: dict[str, Any]) -> dict[str, Any]:
    """A VAE's configuration with as many levels, all of them narrow."""
    widths = [WIDTH // 2] * len(decoder["block_out_channels"])
    return decoder | {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": GROUPS}


def small_text_config(tokenizer: Any) -> Any:
    """A `CLIPTextConfig` of two narrow layers, for a tokenizer's vocabulary and length."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_random_vgg(path: Path) -> None:
    """Writes VGG16's convolutions, which LPIPS compares images with, with random weights; the same every time."""
    from safetensors.torch import save_file
    from torchvision.models import vgg

    torch.manual_seed(0)
    convolutions = vgg.make_layers(vgg.cfgs["D"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"features.{name}": value for name, value in convolutions.state_dict().items()}, path)


def save_labelled_images(path: Path, classes: int) -> None:
    """Writes the builtin pictures as a parquet file that gives them class labels, one after another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pq.read_table(ASSETS / "emoji" / "emoji.parquet", columns=["image"])["image"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": [i % classes for i in range(len(images))]}), path)


def _write_config(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
