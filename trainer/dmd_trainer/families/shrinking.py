"""A teacher of a published architecture made so small, and with random weights, that a laptop trains with it.

Classes, kinds of blocks, number of levels, conditions and noise schedule are the real one's; widths, layers and sizes
are not. It is what `dmdctl run --shrink` rehearses a recipe with.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch

from dmd_trainer.families.architectures import SIZE_CONDITIONS, Architecture, network_class
from dmd_trainer.families.networks import ship_code
from dmd_trainer.runtime.fetch import ASSETS

WIDTH = 16
"""Channels of the narrowest level by default, and of the text encoders."""
GROUPS = 4
HEAD_WIDTH = 8
"""Channels of an attention head."""
SIZE_WIDTH = 8
"""Of what SDXL makes of each of its size conditions."""
PIXELS = 32
"""Height and width of a teacher of pixels: the builtin pictures'."""
LATENTS = 8


def save_shrunken_teacher(architecture: Architecture, folder: Path, width: int = WIDTH) -> None:
    """Writes a teacher in diffusers format; the same one every time.

    Args:
        architecture: the real one's.
        folder: where to.
        width: channels of the network's narrowest level.

    Raises:
        BadInputError: the network is of a class not known here.
    """
    torch.manual_seed(0)
    config, scheduler = shrink_network(architecture.network, width), architecture.scheduler
    part = "transformer" if config["_class_name"] == "SD3Transformer2DModel" else "unet"
    network_class(config).from_config(config).save_pretrained(folder / part)
    _write_config(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {key: ["diffusers", value["_class_name"]] for key, value in ((part, config), ("scheduler", scheduler))}
    pipeline = "DiffusionPipeline"
    if architecture.decoder is not None:
        pipeline = "StableDiffusionPipeline"
        if part == "transformer":
            pipeline = "StableDiffusion3Pipeline"
        elif config.get("addition_embed_type") == "text_time":
            pipeline = "StableDiffusionXLPipeline"
        parts |= _save_text_parts(pipeline, architecture.decoder, folder)
    _write_config(folder / "model_index.json", {"_class_name": pipeline} | parts)
    if config["_class_name"] == "SongUNet":
        ship_code(folder)


def shrink_network(config: dict[str, Any], width: int = WIDTH) -> dict[str, Any]:
    """A configuration with as many levels of the same kinds, each as much wider than the first; SD3 gets two blocks."""
    small = copy.deepcopy(config)
    if config["_class_name"] == "SD3Transformer2DModel":
        return small | {
            "sample_size": LATENTS,
            "num_layers": 2,
            "attention_head_dim": HEAD_WIDTH,
            "num_attention_heads": width // HEAD_WIDTH,
            "caption_projection_dim": width,
            "joint_attention_dim": 2 * WIDTH,
            "pooled_projection_dim": 2 * WIDTH,
            "pos_embed_max_size": LATENTS,
        }
    widths = config["block_out_channels"]
    small |= {
        "block_out_channels": [width * channels // widths[0] for channels in widths],
        "layers_per_block": 1,
        "sample_size": PIXELS,
    }
    match config["_class_name"]:
        case "SongUNet":
            small |= {"model_channels": width, "time_embedding_channels": width, "embedding_channels": width}
        case "UNet2DModel":
            small |= {"norm_num_groups": GROUPS, "attention_head_dim": HEAD_WIDTH}
            if config.get("attn_norm_num_groups") is not None:
                small["attn_norm_num_groups"] = GROUPS
        case "UNet2DConditionModel":
            two = config.get("addition_embed_type") == "text_time"
            small |= {
                "norm_num_groups": GROUPS,
                "attention_head_dim": 2,  # which this class means as the number of heads
                "cross_attention_dim": 2 * WIDTH if two else WIDTH,
                "transformer_layers_per_block": 1,
                "sample_size": LATENTS,
            }
            if two:
                small |= {
                    "addition_time_embed_dim": SIZE_WIDTH,
                    "projection_class_embeddings_input_dim": WIDTH + SIZE_CONDITIONS * SIZE_WIDTH,
                }
    return small


def _save_text_parts(pipeline: str, decoder: dict[str, Any], folder: Path) -> dict[str, list[str | None]]:
    """Writes the VAE, the CLIP text encoders and their tokenizers; what the pipeline's index says of them."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    widths = [WIDTH // 2] * len(decoder["block_out_channels"])
    small = decoder | {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": GROUPS}
    AutoencoderKL.from_config(small).save_pretrained(folder / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji-clip")
    text = small_text_config(tokenizer)
    encoders = {
        "StableDiffusionPipeline": [CLIPTextModel],
        "StableDiffusionXLPipeline": [CLIPTextModel, CLIPTextModelWithProjection],
        "StableDiffusion3Pipeline": [CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    }
    # What the pipelines are complete without.
    absent = {
        "StableDiffusionPipeline": ("safety_checker", "feature_extractor"),
        "StableDiffusionXLPipeline": (),
        "StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3"),
    }
    parts: dict[str, list[str | None]] = {"vae": ["diffusers", "AutoencoderKL"]}
    for suffix, encoder in zip(("", "_2"), encoders[pipeline], strict=False):
        encoder(text).save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        parts |= {
            f"text_encoder{suffix}": ["transformers", encoder.__name__],
            f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"],
        }
    return parts | {part: [None, None] for part in absent[pipeline]}


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
