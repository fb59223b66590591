"""The grid of a training's samples: the same noise each time, so that its pictures can be compared."""

from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.evaluation.measure import Sampler
from dmd_trainer.evaluation.pictures import image_grid
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.storage import Storage

ROWS, COLUMNS = 4, 10
PREFIX = "samples/step-"


class Grid:
    """Draws a run's grid, and keeps what a generator in training draws.

    Args:
        context: the stage's.
        teacher: whose images and latents the samplers make.
        conditions: what the images are made for; with classes, column after column.
    """

    def __init__(self, context: StageContext, teacher: Teacher, conditions: Conditions) -> None:
        self._context, self._teacher, self._conditions = context, teacher, conditions

    # Not inference mode: a sharded network cannot be gathered in it.
    @torch.no_grad()
    def draw(self, sampler: Sampler) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], on the CPU."""
        context, conditions, count = self._context, self._conditions, ROWS * COLUMNS
        random = KeyedRandom(context.manifest.spec.training.seed, "grid", 0, range(count))
        conditions.draw(random)
        noise = random.normal(self._teacher.sample_shape).to(context.device)
        condition = conditions.embed(conditions.in_turn(count), context.device)
        return self._teacher.autoencoder.decode(sampler(noise, condition)).clamp(-1, 1).cpu()

    def keep(self, images: Tensor, step: int) -> None:
        """Keeps what the generator drew after `step` updates, and shows it in MLflow; on rank 0."""
        content = save({"images": images.contiguous()})
        self._context.storage.write(f"{PREFIX}{step:06d}.safetensors", content)
        if self._context.tracker is not None:
            self._context.tracker.log_image(image_grid(images), "samples", step)


def kept_steps(storage: Storage) -> dict[int, str]:
    """The steps whose images were kept, each with its key."""
    keys = [key for key in storage.list(PREFIX) if key.endswith(".safetensors")]
    return {int(Path(key).stem.removeprefix("step-")): key for key in keys}


def read_kept(storage: Storage, key: str) -> Tensor:
    """Images [N, C, H, W] that were kept."""
    return load(storage.read(key))["images"]
