"""Trains the digits example's teacher: a class-conditional EDM model of 8x8 digits, in diffusers format.

    python examples/digits/train_teacher.py trainer/dmd_trainer/assets/digits-teacher

EDM as published (Karras et al. 2022, arXiv 2206.00364), with one difference: the network is given 250 ln(sigma)
instead of ln(sigma) / 4. That is what `CMStochasticIterativeScheduler` tells it, so that the teacher, and the one-step
generator distilled from it, are stock diffusers pipelines.
"""

import copy
import json
from pathlib import Path

import torch
import typer
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from rich.progress import track

from dmd_trainer.data.digits import CLASSES, load_digits_images
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.dmd.losses import denoising_loss

CHANNELS = (32, 32)
P_MEAN, P_STD = -0.6, 1.2
"""ln(sigma) is normal with these in training."""

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [digits, edm, class-conditional]
---
# digits-teacher

A class-conditional EDM diffusion model of 8x8 digits: the teacher of dmd-operator's digits example.

- Data: the 1,797 images of `sklearn.datasets.load_digits` (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0),
  scaled to [-1, 1].
- Network: diffusers' `UNet2DModel`, {parameters:,} parameters, told 250 ln(sigma); EDM preconditioning with sigma_data
  = {sigma_data}; Karras sigmas from 80 down to 0.002.
- Training: {steps:,} steps of Adam, batch {batch}, learning rate {learning_rate} with a cosine decay, EMA {ema},
  seed {seed}; ln(sigma) ~ N({p_mean}, {p_std}^2).
- Sampling: 18 Heun steps (35 network evaluations).
- Made by `examples/digits/train_teacher.py`.
"""


def main(
    out: Path,
    steps: int = 8_000,
    batch: int = 128,
    learning_rate: float = 1e-3,
    ema: float = 0.999,
    seed: int = 0,
) -> None:
    """Trains the teacher and writes it to OUT."""
    torch.manual_seed(seed)
    images, labels = load_digits_images()
    sigma_data = round(float(images.std()), 2)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        # No attention: on 4x4 positions the convolutions see everything, and it costs a third of the time.
        down_block_types=("DownBlock2D",) * len(CHANNELS),
        up_block_types=("UpBlock2D",) * len(CHANNELS),
        add_attention=False,
        norm_num_groups=8,
        num_class_embeds=CLASSES,
    )
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=18, sigma_data=sigma_data)
    config = json.loads(scheduler.to_json_string())
    schedule = schedule_from_scheduler(config)
    denoiser = Denoiser(network, schedule, Prediction.EDM)
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.02)
    smoothed = 0.0
    for step in track(range(steps), description="training"):
        chosen = torch.randint(len(images), (batch,))
        sigma = (torch.randn(batch, dtype=torch.float64) * P_STD + P_MEAN).exp().clamp(0.002, 80.0)
        noise = torch.randn(batch, *images.shape[1:])
        loss = denoising_loss(
            denoiser, images[chosen], noise, schedule.at_sigma(sigma), {"class_labels": labels[chosen]}
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay.step()
        weight = 1 - min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in network.parameters()], weight)
        smoothed += (loss.item() - smoothed) * max(0.01, 1 / (step + 1))
        if step % 1000 == 999:
            typer.echo(f"step {step + 1}: loss {smoothed:.4f}")
    ConsistencyModelPipeline(averaged.eval(), scheduler).save_pretrained(out, safe_serialization=True)
    card = CARD.format(
        parameters=sum(p.numel() for p in network.parameters()), sigma_data=sigma_data, steps=steps, batch=batch,
        learning_rate=learning_rate, ema=ema, seed=seed, p_mean=P_MEAN, p_std=P_STD,
    )  # fmt: skip
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    typer.run(main)
