"""Trains the glyph task's teacher: a class-conditional EDM model of 16x16 letters in colour, in diffusers format.

    torchrun --nproc-per-node 2 examples/glyphs/train_teacher.py trainer/dmd_trainer/assets/glyphs-teacher

EDM as published (Karras et al. 2022, arXiv 2206.00364), told 250 ln(sigma) as the digits' teacher is, on images that
are drawn as they are needed: none is seen twice. Learning rate and average are EDM2's (Karras et al. 2024, arXiv
2312.02696), which need no length of training: the same command goes on from its checkpoint, for as many steps as it is
given. Processes share each batch, and as many of them as there are cores are the fastest.
"""

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from rich.progress import track
from torch import nn

from dmd_trainer.data.glyphs import CLASSES, SIZE, draw_glyphs
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.distributed.collectives import average_gradients, local_slice, rank_and_world_size, start_process_group
from dmd_trainer.dmd.losses import denoising_loss

CHANNELS = (32, 64, 64)
SIGMA_DATA = 0.57
"""The standard deviation of 100,000 images' pixels."""
P_MEAN, P_STD = -0.8, 1.4
"""ln(sigma) is normal with these in training."""
WARMUP, FLAT = 200, 2_000
"""Steps until the learning rate is whole, and until it begins to fall as 1 / sqrt(step) (arXiv 2312.02696, eq. 67)."""
GAMMA = 6.94
"""Of the power function average, which is as wide as a tenth of the training (arXiv 2312.02696, section 3.1)."""

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [glyphs, edm, class-conditional]
---
# glyphs-teacher

A class-conditional EDM diffusion model of 16x16 letters in colour: the teacher of dmd-operator's glyph task.

- Data: capital letters drawn on demand in {fonts} fonts that ship with matplotlib (DejaVu, STIX, Computer Modern), of
  random size, place, turn, shear and colours (`dmd_trainer.data.glyphs`), scaled to [-1, 1]; no image was seen twice.
- Network: diffusers' `UNet2DModel`, {parameters:,} parameters, told 250 ln(sigma); EDM preconditioning with sigma_data
  = {sigma_data}; Karras sigmas from 80 down to 0.002.
- Training: {steps:,} steps of Adam, the network in {precision}, batch {batch} ({images:,} images), learning rate
  {learning_rate}, falling as 1 / sqrt(step) from step {flat:,} on; power function average of 0.10; seed {seed};
  ln(sigma) ~ N({p_mean}, {p_std}^2).
- Sampling: 18 Heun steps (35 network evaluations) or more.
- Made by `examples/glyphs/train_teacher.py`.
"""


def make_network() -> UNet2DModel:
    """The network, with random weights."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        # No attention: on 4x4 positions the convolutions see everything, and it costs a third of the time.
        down_block_types=("DownBlock2D",) * len(CHANNELS),
        up_block_types=("UpBlock2D",) * len(CHANNELS),
        add_attention=False,
        norm_num_groups=8,
        num_class_embeds=CLASSES,
    )


def main(
    out: Path,
    steps: int = 13_000,
    batch: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    every: int = 250,
    bf16: bool = False,
) -> None:
    """Trains the teacher up to STEPS and writes it to OUT; its checkpoint is OUT.checkpoint, of every so many steps."""
    if "RANK" in os.environ:
        start_process_group(torch.device("cpu"))
    ranks = rank_and_world_size()
    own = local_slice(batch, ranks)
    torch.manual_seed(seed)
    network = make_network()
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=18, sigma_data=SIGMA_DATA)
    schedule = schedule_from_scheduler(json.loads(scheduler.to_json_string()))
    # Processors that multiply in bfloat16 take three fifths of the time for it; weights and loss stay float32.
    denoiser = Denoiser(network, schedule, Prediction.EDM, autocast=torch.bfloat16 if bf16 else None)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    checkpoint, first, smoothed = out.with_suffix(".checkpoint"), 0, 1.0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        first, smoothed = kept["step"], kept["loss"]
        network.load_state_dict(kept["network"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
    facts: dict[str, Any] = {"batch": batch, "learning_rate": learning_rate, "seed": seed}
    facts |= {"precision": "bfloat16" if bf16 else "float32"}
    started = time.monotonic()
    for step in track(range(first, steps), "training", disable=ranks.rank > 0):
        draws = torch.Generator().manual_seed((seed << 32) + step)
        normal = torch.randn(batch, dtype=torch.float64, generator=draws)[own.start : own.stop]
        sigma = (normal * P_STD + P_MEAN).exp().clamp(0.002, 80.0)
        noise = torch.randn(batch, 3, SIZE, SIZE, generator=draws)[own.start : own.stop]
        images, labels = draw_glyphs(range(step * batch, (step + 1) * batch)[own.start : own.stop])
        loss = denoising_loss(denoiser, images, noise, schedule.at_sigma(sigma), {"class_labels": labels})
        optimizer.zero_grad()
        loss.backward()
        reported, _ = average_gradients(network.parameters(), {"loss": loss.detach()})
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        rate = learning_rate * min(1, (step + 1) / WARMUP) / max(1, step / FLAT) ** 0.5
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        weight = 1 - (1 - 1 / (step + 1)) ** (GAMMA + 1)
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], weight)
        smoothed += (reported["loss"] - smoothed) * max(0.01, 1 / (step + 1))
        if ranks.rank == 0 and ((step + 1) % every == 0 or step + 1 == steps):
            kept = {"network": network.state_dict(), "average": average.state_dict()}
            kept |= {"optimizer": optimizer.state_dict(), "step": step + 1, "loss": smoothed}
            torch.save(kept, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            write(out, average, scheduler, facts | {"steps": step + 1, "images": (step + 1) * batch})
            typer.echo(f"step {step + 1}: loss {smoothed:.4f}, {time.monotonic() - started:.0f} s")


def write(out: Path, network: UNet2DModel, scheduler: CMStochasticIterativeScheduler, facts: dict[str, Any]) -> None:
    """The pipeline and its model card, which has these facts of its training."""
    from dmd_trainer.data.glyphs import FONTS

    ConsistencyModelPipeline(copy.deepcopy(network).eval(), scheduler).save_pretrained(out, safe_serialization=True)
    card = CARD.format(
        fonts=len(FONTS), parameters=network.num_parameters(), sigma_data=SIGMA_DATA, flat=FLAT, p_mean=P_MEAN,
        p_std=P_STD, **facts,
    )  # fmt: skip
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    typer.run(main)
