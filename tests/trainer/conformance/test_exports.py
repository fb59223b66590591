"""Exported generators, loaded and called by a stranger: one process a family, which cannot import this project."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dmd_api.spec import Lora, Method
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.schedules import add_noise, schedule_from_scheduler
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.architecture import known_architecture
from dmd_trainer.families.shrinking import save_shrunken_teacher
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.publishing.adapters import KOHYA
from dmd_trainer.publishing.export import call_arguments, export_pipeline, generator_network
from dmd_trainer.publishing.model_card import CardFacts
from tests.trainer.conformance.teachers import (
    PROMPTS,
    condition_of,
    noise_for,
    own_pipeline,
    perturbed,
    teacher_folder,
)

FACTS = CardFacts("run", "hf://owner/teacher", "DMD", "abc", "1.0", b"no picture")
PIXEL = 2 / 255
HALF = 0.1
"""What 16 bits may change in an untrained network's images."""
SEEDS = (11, 12)
LABELS = [3, 7]
STRANGER = Path(__file__).with_name("stranger.py")


class Compared(NamedTuple):
    """A file of a stranger's images, and what they should be: [B, H, W, C] in [0, 1]; None for the card's example."""

    file: Path
    expected: np.ndarray | None
    within: float = PIXEL


class Jobs:
    """What one stranger is to do, and what should come of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compared: dict[str, Compared] = {}
        self._jobs: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        pipeline: Path,
        call: dict[str, Any],
        expected: Tensor | None,
        within: float = PIXEL,
        **more: Any,
    ) -> None:
        """Adds a call of an exported pipeline; `expected` [B, C, H, W] in [-1, 1], or None for its card's example."""
        out = self.folder / (name if expected is None else f"{name}.npy")
        self._jobs.append({"folder": str(pipeline), "out": str(out), "call": call, "card": expected is None, **more})
        images = None if expected is None else ((expected.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
        self.compared[name] = Compared(out, images, within)

    def run(self) -> None:
        """Lets the stranger do all of them."""
        file = self.folder / "jobs.json"
        file.write_text(json.dumps(self._jobs))
        environment = {**os.environ, "HF_MODULES_CACHE": str(self.folder / "modules"), "PYTHONPATH": ""}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", STRANGER, file],
            check=False, capture_output=True, text=True, timeout=400, env=environment, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]


def generator_of(teacher: Teacher, weights: dict[str, Tensor], timesteps: tuple[int, ...]) -> Generator:
    network = load_teacher(teacher.directory).denoiser.network
    network.load_state_dict(weights)
    return Generator(teacher.denoiser.with_network(network), timesteps)


@torch.no_grad()
def text_jobs(family: str, jobs: Jobs) -> None:
    folder = jobs.folder
    teacher = load_teacher(teacher_folder(family, folder / "teacher"))
    condition, noise = condition_of(family, teacher)[0], noise_for(teacher.sample_shape)
    np.save(folder / "latents.npy", noise.numpy())
    weights = perturbed(teacher)
    timesteps = generator_timesteps(Method(), teacher.denoiser.schedule)
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if family == "sd3" else {}
    common = {"latents": str(folder / "latents.npy"), "load": absent}

    def export(name: str, of: Teacher = teacher, wanted: dict[str, Tensor] = weights, **options: Any) -> Path:
        export_pipeline(of, wanted, options.pop("timesteps", timesteps), folder / name, FACTS, **options)
        return folder / name

    def call(steps: int = 1) -> dict[str, Any]:
        return {"prompt": PROMPTS, "height": 16, "width": 16, **call_arguments(teacher.family.exports[0], steps)}

    def images(latents: Tensor) -> Tensor:
        return teacher.autoencoder.decode(latents)

    expected = images(generator_of(teacher, weights, timesteps)(noise, condition))
    plain = export("plain")
    jobs.add("one step", plain, call(), expected, **common)
    jobs.add("card", plain, {}, None)

    pipeline = own_pipeline(teacher.directory)
    pipeline.to(torch.float16).save_pretrained(folder / "half")
    half = load_teacher(folder / "half")
    jobs.add("teacher in float16", export("from-half", half), call(), expected, HALF, **common)
    for dtype in ("float16", "bfloat16"):
        loading = {**common, "load": {**absent, "torch_dtype": dtype}}
        jobs.add(dtype, export(dtype, half, dtype=dtype), call(), expected, HALF, **loading)
    jobs.add("card of float16", folder / "float16", {}, None)

    lora = Lora(rank=4, alpha=16)
    adapted = adapters_of(teacher, lora)
    network = generator_network(teacher, adapted, lora)
    merged = images(Generator(teacher.denoiser.with_network(network), timesteps)(noise, condition))
    assert (merged - images(Generator(teacher.denoiser, timesteps)(noise, condition))).abs().max() > 0.1
    with_adapters = export("adapters", wanted=adapted, lora=lora)
    jobs.add("merged adapters", with_adapters, call(), merged, **common)
    unadapted = export("unadapted", wanted=teacher.denoiser.network.state_dict())
    jobs.add("loaded adapters", unadapted, call(), merged, lora=str(with_adapters / "lora"), **common)
    if teacher.family.part == "unet":
        jobs.add("kohya's adapters", unadapted, call(), merged, lora=str(with_adapters / "lora" / KOHYA), **common)
        few = generator_timesteps(Method(name="DMD2", generator_steps=4), teacher.denoiser.schedule)
        drawn = images(several_steps(generator_of(teacher, weights, few), noise, condition))
        jobs.add("four steps", export("few", timesteps=few), call(4), drawn, seeds=SEEDS, **common)


def adapters_of(teacher: Teacher, lora: Lora) -> dict[str, Tensor]:
    """A network's state with adapters that change something."""
    network: nn.Module = teacher.trainable_network()
    add_lora(network, lora, teacher.family.adapted_layers)
    random = torch.Generator().manual_seed(5)
    state = network.state_dict()
    return {
        name: 0.3 * torch.randn(value.shape, generator=random) if "lora" in name else value
        for name, value in state.items()
    }


def several_steps(generator: Generator, noise: Tensor, condition: Any) -> Tensor:
    """The generator's image where the noise between its steps is the sampler's, drawn for each sample from its seed."""
    sources = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x_t = noise
    for step in range(len(generator.timesteps)):
        x0 = generator.step(x_t, condition, step)
        if step + 1 < len(generator.timesteps):
            fresh = torch.cat([torch.randn(1, *noise.shape[1:], generator=source) for source in sources])
            level = generator.denoiser.schedule.at(torch.full((len(noise),), generator.timesteps[step + 1]))
            x_t = add_noise(x0, fresh, level)
    return x0


def seeded_noise(teacher: Teacher) -> Tensor:
    shape = (1, *teacher.sample_shape)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])


@torch.no_grad()
def pixel_job(name: str, jobs: Jobs, teacher: Teacher, timestep: int, card: str | None = None, **more: Any) -> None:
    weights, out = perturbed(teacher), jobs.folder / f"pipeline of {name}"
    labelled = teacher.num_class_embeds is not None
    condition = {"class_labels": torch.tensor(LABELS)} if labelled else {}
    expected = generator_of(teacher, weights, (timestep,))(seeded_noise(teacher), condition)
    export_pipeline(teacher, weights, [timestep], out, FACTS)
    call = {"batch_size": 2, **call_arguments(teacher.family.exports[0])}
    if labelled:
        call["class_labels"] = LABELS
    jobs.add(name, out, call, expected, seeds=SEEDS, **more)
    if card is not None:
        jobs.add(card, out, {}, None)


def ddpm_jobs(family: str, jobs: Jobs) -> None:
    teacher = load_teacher(teacher_folder(family, jobs.folder / "teacher"))
    pixel_job("noisiest level", jobs, teacher, 999, card="card")
    pixel_job("level 399", jobs, teacher, 399)


def edm_jobs(family: str, jobs: Jobs) -> None:
    teacher = load_teacher(teacher_folder(family, jobs.folder / "teacher"))
    pixel_job("consistency model's time", jobs, teacher, 999, card="card")
    schedule = schedule_from_scheduler({"_class_name": "EDMEulerScheduler", "sigma_data": 0.75})
    folded = replace(teacher, denoiser=replace(teacher.denoiser, schedule=schedule))
    pixel_job("edm's time, folded", jobs, folded, 900)
    save_shrunken_teacher(known_architecture("edm-cifar10"), jobs.folder / "ours")
    pixel_job("network of ours", jobs, load_teacher(jobs.folder / "ours"), 999, card="card of ours", trust=True)


FAMILIES: dict[str, Callable[[str, Jobs], None]] = {
    "sd": text_jobs,
    "sdxl": text_jobs,
    "sd3": text_jobs,
    "ddpm": ddpm_jobs,
    "edm": edm_jobs,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_draws_what_the_trainer_measures(family: str, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    FAMILIES[family](family, jobs)
    jobs.run()
    for name, (file, expected, within) in jobs.compared.items():
        if expected is None:
            with Image.open(file / "image.png") as image:
                assert min(image.size) >= 8, name
        else:
            np.testing.assert_allclose(np.load(file), expected, rtol=0, atol=within, err_msg=name)
