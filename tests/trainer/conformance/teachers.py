"""Tiny teachers of every family with any scheduler, VAE or network configuration, and their own pipelines."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import diffusers
import torch

from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.families.pipelines import absent_parts, read_index
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.families.text_encoder import TextEncoder
from tests.conftest import tiny_unet
from tests.trainer.conformance.configurations import Configuration
from tests.trainer.text_teachers import MAKERS

PROMPTS = ["red apple", "rocket"]


def _make_ddpm(folder: Path) -> Path:
    diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def _make_edm(folder: Path) -> Path:
    scheduler = diffusers.CMStochasticIterativeScheduler()
    diffusers.ConsistencyModelPipeline(tiny_unet(num_class_embeds=10), scheduler).save_pretrained(folder)
    return folder


EVERY_MAKER: dict[str, Callable[[Path], Path]] = {**MAKERS, "ddpm": _make_ddpm, "edm": _make_edm}


@cache
def _original(family: str) -> Path:
    return EVERY_MAKER[family](Path(mkdtemp(prefix="conformance-")) / family)


def teacher_folder(family: str, folder: Path, scheduler: Configuration | None = None, **changes: Any) -> Path:
    """A teacher of a family.

    Args:
        family: its name in `EVERY_MAKER`.
        folder: where to; it is made.
        scheduler: its schedule.
        changes: a part's name, or model_index, with what is changed in its configuration.
    """
    # Links: a weight is never written to, and configurations are replaced.
    shutil.copytree(_original(family), folder, copy_function=os.link)
    if scheduler is not None:
        name, fields = scheduler
        content = {"_class_name": f"{name}Scheduler", **fields}
        # As `save_pretrained` writes it, and as it writes fields of another class that a file had.
        if scheduler_class := getattr(diffusers, content["_class_name"], None):
            content = {**dict(scheduler_class.from_config({}).config), **content}
        _replace(folder / "scheduler" / "scheduler_config.json", content)
        index = json.loads((folder / "model_index.json").read_text())
        _replace(folder / "model_index.json", index | {"scheduler": ["diffusers", content["_class_name"]]})
    for part, change in changes.items():
        file = folder / "model_index.json" if part == "model_index" else folder / part / "config.json"
        _replace(file, json.loads(file.read_text()) | change)
    return folder


def _replace(file: Path, content: dict[str, Any]) -> None:
    file.unlink()
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "_use_default_values"}))


def own_pipeline(folder: Path, **parts: Any) -> Any:
    """The teacher's own pipeline, as a stranger loads it; `parts` are not loaded again."""
    absent = absent_parts(read_index(folder))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **{**absent, **parts})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def text_parts(family: str) -> dict[str, Any]:
    """The text encoders and tokenizers of a family's pipelines, which are the same in all of them."""
    components = own_pipeline(_original(family)).components
    return {name: part for name, part in components.items() if name.startswith(("text_encoder", "tokenizer"))}


@cache
def prompt_conditions(family: str) -> tuple[Condition, Condition]:
    """Those of `PROMPTS`, and what guidance leads away from."""
    encoder = TextEncoder(_original(family), torch.device("cpu"))
    return encoder.encode(PROMPTS), encoder.negative()


def condition_of(family: str, teacher: Teacher) -> tuple[Condition, Condition | None]:
    """Two samples' condition, and what guidance leads away from."""
    if not teacher.takes_text:
        return ({} if teacher.num_class_embeds is None else {"class_labels": torch.tensor([3, 7])}), None
    condition, negative = prompt_conditions(family)
    added = teacher.added_conditions
    every = {key: value.expand(2, *value.shape[1:]) for key, value in added.items()}
    return {**condition, **every}, {**negative, **added}


def perturbed(teacher: Teacher) -> dict[str, torch.Tensor]:
    """Weights that are not the teacher's."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in teacher.denoiser.network.state_dict().items()
    }


def close(found: torch.Tensor, expected: torch.Tensor, within: float = 1e-4) -> None:
    """Asserts that all are within so much of the largest value: untrained networks' images have any scale."""
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=within * max(1.0, float(expected.abs().max())))


def noise_for(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    """Two samples of unit-variance noise."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
