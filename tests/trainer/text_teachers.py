"""Untrained text-to-image pipelines of a few thousand parameters, of the same classes as the real ones."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dmd_trainer.families.shrinking import WIDTH, small_text_config
from dmd_trainer.runtime.fetch import ASSETS


def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(ASSETS / "emoji-clip")


def _vae(latent_channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        scaling_factor=0.5,
        sample_size=16,
        shift_factor=0.1 if latent_channels != 4 else None,
    )


def _unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        **options,
    )


def _pndm() -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def make_sd(folder: Path) -> Path:
    """Stable Diffusion 1.x: one text encoder."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(small_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=WIDTH),
        scheduler=_pndm(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders, size conditions."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = small_text_config(tokenizer)
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        scheduler=_pndm(),
    ).save_pretrained(folder)
    return folder


def make_sd3(folder: Path) -> Path:
    """Stable Diffusion 3: a flow-matching transformer, two CLIP encoders, no T5."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = small_text_config(tokenizer)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16),
        text_encoder=CLIPTextModelWithProjection(config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


MAKERS = {"sd": make_sd, "sdxl": make_sdxl, "sd3": make_sd3}
