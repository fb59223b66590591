"""Trains the emoji example's teacher: a small latent text-to-image model, in diffusers format.

    cd trainer/dmd_trainer/assets
    python ../../../examples/emoji/train_teacher.py emoji-teacher emoji-clip

Stable Diffusion 1.5 made small (Rombach et al. 2022, arXiv 2112.10752): a KL autoencoder to latents of 4 x 8 x 8, and a
UNet that predicts their noise and attends to the tokens of a CLIP text model, with the same schedule and with one
caption in ten left empty for classifier-free guidance. What it writes is a stock `StableDiffusionPipeline`; two cores
with nothing else to do take three quarters of an hour.
"""

import copy
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import track
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from dmd_trainer.data.emoji import SIZE, load_emoji, retrieval_ranks

KL_WEIGHT = 1e-3
UNCONDITIONAL = 0.1
"""How many captions are empty in training, for guidance."""
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
}  # fmt: skip
"""Stable Diffusion 1.5's."""
GUIDANCE = 3.0

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [emoji, latent-diffusion]
---
# emoji-teacher

A latent diffusion model that draws 32x32 emoji from prompts: the teacher of dmd-operator's emoji example, and a stock
`StableDiffusionPipeline` of {total:,} parameters.

- Data: the {count:,} glyphs of Noto Color Emoji with their Unicode names that ship as `assets/emoji`.
- Autoencoder: `AutoencoderKL`, {vae:,} parameters, to latents of 4 x 8 x 8; {vae_steps:,} steps of Adam, batch
  {vae_batch}, L1 + {kl} KL, learning rate 0.002 with a cosine decay. Error on the glyphs: {psnr:.1f} dB.
- Text encoder: the text model of `assets/emoji-clip`, frozen.
- Network: `UNet2DConditionModel`, {unet:,} parameters, predicts the noise; Stable Diffusion 1.5's schedule; {steps:,}
  steps of AdamW, batch {batch}, learning rate {learning_rate} with a cosine decay, EMA {ema}, seed {seed}; glyphs
  scaled and shifted by up to 5 %; one caption in ten empty, and words left out of one in four.
- Retrieval, 50 steps at guidance {guidance}, {prompts} captions: the nearest glyph in emoji-clip's image features is
  the right one for {top1:.1%}, among the nearest five for {top5:.1%}.
- The autoencoder's and the UNet's weights are stored in half precision; they load, and are used, in single precision.
- Made by `examples/emoji/train_teacher.py`.
"""


def augment(images: Tensor, amount: float, flip: bool = False) -> Tensor:
    """Scales and shifts images [B, 3, 32, 32] on white by up to `amount` of their size."""
    scale, x, y = 1 + amount * (torch.rand(3, len(images)) * 2 - 1)
    zero = torch.zeros_like(scale)
    mirror = torch.randint(0, 2, scale.shape) * 2 - 1 if flip else 1
    shift = 2 * torch.stack([x - 1, y - 1], 1)
    theta = torch.stack([torch.stack([scale * mirror, zero], 1), torch.stack([zero, scale], 1)], 1)
    grid = F.affine_grid(torch.cat([theta, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, align_corners=False) + 1  # the background is 1, the padding 0


def train_vae(images: Tensor, steps: int, batch: int) -> AutoencoderKL:
    """Trains the autoencoder; its scaling factor gives latents a standard deviation of 1."""
    channels = (24, 48, 64)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    smoothed, start = 0.0, time.monotonic()
    for step in track(range(steps), description="autoencoder"):
        chosen = augment(images[torch.randint(len(images), (batch,))], 0.1, flip=True)
        latents = vae.encode(chosen).latent_dist
        decoded = vae.decode(latents.sample()).sample
        loss = F.l1_loss(decoded, chosen) + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay.step()
        smoothed += (loss.item() - smoothed) * max(0.02, 1 / (step + 1))
        if step % 100 == 99:
            print(f"step {step + 1}: loss {smoothed:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=round(1 / encode(vae, images).std().item(), 4))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The means [N, 4, 8, 8] of the images' latents, not scaled."""
    return torch.cat([vae.encode(some).latent_dist.mean for some in images.split(128)])


@torch.no_grad()
def signal_to_noise(vae: AutoencoderKL, images: Tensor) -> float:
    """The autoencoder's peak signal-to-noise ratio in decibels."""
    decoded = torch.cat([vae.decode(some).sample for some in encode(vae, images).split(128)])
    return 10 * torch.log10(4 / (decoded.clamp(-1, 1) - images).square().mean()).item()


def drop_words(caption: str, probability: float) -> str:
    """The caption without some of its words, but with at least one."""
    words = caption.split()
    return " ".join([word for word in words if random.random() >= probability] or [random.choice(words)])


def train_unet(
    latents: Tensor, embeddings: Tensor, empty: Tensor, steps: int, batch: int, learning_rate: float, ema: float
) -> UNet2DConditionModel:
    """Trains the UNet and returns the average of its weights.

    Args:
        latents: [V, N, 4, 8, 8], scaled: V versions of each glyph.
        embeddings: [W, N, 16, 128]: the caption's embeddings in W versions, the first of them whole.
        empty: [16, 128], the empty prompt's.
        steps: how many updates.
        batch: how many glyphs in each.
        learning_rate: the highest.
        ema: the decay of the average.
    """
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        # Cross-attention where there are few positions: it costs as much as the convolutions, and here reaches all.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=embeddings.shape[-1],
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(unet).requires_grad_(False)
    scheduler = DDPMScheduler(**SCHEDULE)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    versions, count = latents.shape[:2]
    smoothed, start = 0.0, time.monotonic()
    for step in track(range(steps), description="network"):
        chosen = torch.randint(count, (batch,))
        clean = latents[torch.randint(versions, (batch,)), chosen]
        wording = torch.randint(len(embeddings), (batch,)) * (torch.rand(batch) < 0.25)
        states = torch.where(torch.rand(batch, 1, 1) < UNCONDITIONAL, empty, embeddings[wording, chosen])
        noise, times = torch.randn_like(clean), torch.randint(scheduler.config.num_train_timesteps, (batch,))
        loss = F.mse_loss(unet(scheduler.add_noise(clean, noise, times), times, states).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay.step()
        weight = 1 - min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in unet.parameters()], weight)
        smoothed += (loss.item() - smoothed) * max(0.01, 1 / (step + 1))
        if step % 250 == 249:
            print(f"step {step + 1}: loss {smoothed:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    return averaged.eval()


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], steps: int = 50, seed: int = 0) -> Tensor:
    """Pictures [N, 3, 32, 32] in [-1, 1] for N prompts."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "generator": generator, "output_type": "pt"}
    pipeline.set_progress_bar_config(disable=True)
    return torch.cat([pipeline(prompts[i : i + 64], **options).images for i in range(0, len(prompts), 64)]) * 2 - 1


def main(
    out: Path,
    clip: Path,
    vae: Path | None = None,
    vae_steps: int = 2_200,
    vae_batch: int = 32,
    steps: int = 15_000,
    batch: int = 32,
    learning_rate: float = 1e-3,
    ema: float = 0.999,
    prompts: int = 256,
    seed: int = 0,
) -> None:
    """Trains the teacher with the text model of CLIP and writes it to OUT; VAE, if given, is one trained before."""
    torch.manual_seed(seed)
    random.seed(seed)
    images, captions = load_emoji()
    autoencoder = AutoencoderKL.from_pretrained(vae) if vae else train_vae(images, vae_steps, vae_batch)
    autoencoder.save_pretrained(out / "vae")
    psnr = signal_to_noise(autoencoder, images)
    print(f"autoencoder: {psnr:.1f} dB, scaling factor {autoencoder.config.scaling_factor}", flush=True)
    moved = [images, *(augment(images, 0.05) for _ in range(5))]
    latents = torch.stack([encode(autoencoder, version) for version in moved]) * autoencoder.config.scaling_factor

    model = CLIPModel.from_pretrained(clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    text_encoder = CLIPTextModel.from_pretrained(clip).eval()

    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(tokens).last_hidden_state

    wordings = [captions, *([drop_words(caption, 0.3) for caption in captions] for _ in range(4))]
    embeddings = torch.stack([embed(texts) for texts in wordings])
    unet = train_unet(latents, embeddings, embed([""])[0], steps, batch, learning_rate, ema)

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    autoencoder.half()
    unet.half()
    pipeline.save_pretrained(out, safe_serialization=True)
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    chosen = torch.randperm(len(captions))[:prompts]
    ranks = retrieval_ranks(draw(pipeline, [captions[i] for i in chosen]), chosen, images, model)
    top1, top5 = ((ranks < k).float().mean().item() for k in (1, 5))
    print(f"retrieval: {top1:.1%}, among five {top5:.1%}", flush=True)
    sizes = {name: getattr(pipeline, name).num_parameters() for name in ("vae", "unet", "text_encoder")}
    card = CARD.format(
        total=sum(sizes.values()), count=len(images), vae=sizes["vae"], vae_steps=vae_steps, vae_batch=vae_batch,
        kl=KL_WEIGHT, psnr=psnr, unet=sizes["unet"], steps=steps, batch=batch, learning_rate=learning_rate, ema=ema,
        seed=seed, guidance=GUIDANCE, prompts=prompts, top1=top1, top5=top5,
    )  # fmt: skip
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    typer.run(main)
