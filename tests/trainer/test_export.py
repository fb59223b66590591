"""Exported pipelines are the generator, in an environment that knows nothing of this project."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_api.text import neutral
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.families.architecture import known_architecture
from dmd_trainer.families.shrinking import save_shrunken_teacher
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.publishing.export import call_arguments, check_exportable, export_pipeline
from dmd_trainer.publishing.model_card import CardFacts, model_card
from tests.awkward import AWKWARD, steers

FACTS = CardFacts("run", "file:///teacher", "DMD", "abc", "1.0")


def perturbed(teacher: Teacher) -> dict[str, torch.Tensor]:
    """Weights that are not the teacher's."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in teacher.denoiser.network.state_dict().items()
    }


def own_pixels(teacher: Teacher, weights: dict[str, torch.Tensor], timestep: int, noise: torch.Tensor) -> np.ndarray:
    """What the trainer's generator makes, as a pipeline shows it: in [0, 1], channels last."""
    network = load_teacher(teacher.directory).denoiser.network
    network.load_state_dict(weights)
    condition = {} if teacher.num_class_embeds is None else {"class_labels": torch.tensor([3, 7])}
    with torch.no_grad():
        images = Generator(teacher.denoiser.with_network(network), (timestep,))(noise, condition)
    return ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()


FOREIGN = """
import builtins, json, sys
original = builtins.__import__
def guarded(name, *args, **kwargs):
    assert not name.startswith(("dmd_", "dmdctl")), name
    return original(name, *args, **kwargs)
builtins.__import__ = guarded
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=len(sys.argv) > 4)
options = json.loads(sys.argv[2])
noise = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
images = pipeline(batch_size=2, generator=noise, output_type="np", **options).images
np.save(sys.argv[3], images)
"""


def foreign_pixels(pipeline: Path, tmp_path: Path, *, own_code: bool = False, **options: object) -> np.ndarray:
    name = json.loads((pipeline / "model_index.json").read_text())["_class_name"]
    out = tmp_path / "pixels.npy"
    arguments = json.dumps({**call_arguments(name), **options})
    script = textwrap.dedent(FOREIGN)
    command = [sys.executable, "-c", script, str(pipeline), arguments, str(out)]
    cache = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([*command, *(["trust"] if own_code else [])], check=True, timeout=200, env=cache)
    return np.load(out)


def pipeline_noise() -> torch.Tensor:
    return torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12)])


def test_a_consistency_pipeline_gives_the_trainers_own_pixels(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = load_teacher(tiny_teacher)
    weights = perturbed(teacher)
    export_pipeline(teacher, weights, [999], tmp_path / "pipeline", FACTS)
    found = foreign_pixels(tmp_path / "pipeline", tmp_path, class_labels=[3, 7])
    np.testing.assert_allclose(found, own_pixels(teacher, weights, 999, pipeline_noise()), atol=1e-5)


def test_a_network_with_edms_own_time_is_folded_into_a_consistency_pipeline(tiny_teacher: Path, tmp_path: Path) -> None:
    loaded = load_teacher(tiny_teacher)
    schedule = schedule_from_scheduler({"_class_name": "EDMEulerScheduler", "sigma_data": 0.75})
    teacher = replace(loaded, denoiser=replace(loaded.denoiser, schedule=schedule))
    weights = perturbed(teacher)
    export_pipeline(teacher, weights, [900], tmp_path / "pipeline", FACTS)
    found = foreign_pixels(tmp_path / "pipeline", tmp_path, class_labels=[3, 7])
    np.testing.assert_allclose(found, own_pixels(teacher, weights, 900, pipeline_noise()), atol=1e-5)


def test_a_network_of_ours_comes_with_its_code(tmp_path: Path) -> None:
    save_shrunken_teacher(known_architecture("edm-cifar10"), tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    weights = perturbed(teacher)
    export_pipeline(teacher, weights, [999], tmp_path / "pipeline", FACTS)
    assert "trust_remote_code=True" in (tmp_path / "pipeline" / "README.md").read_text()
    found = foreign_pixels(tmp_path / "pipeline", tmp_path, own_code=True, class_labels=[3, 7])
    noise = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12)]
    np.testing.assert_allclose(found, own_pixels(teacher, weights, 999, torch.cat(noise)), atol=1e-5)


@pytest.mark.parametrize("timestep", [999, 399])
def test_a_ddim_pipeline_gives_the_trainers_own_pixels(tiny_ddpm: Path, tmp_path: Path, timestep: int) -> None:
    teacher = load_teacher(tiny_ddpm)
    weights = perturbed(teacher)
    export_pipeline(teacher, weights, [timestep], tmp_path / "pipeline", FACTS)
    found = foreign_pixels(tmp_path / "pipeline", tmp_path)
    np.testing.assert_allclose(found, own_pixels(teacher, weights, timestep, pipeline_noise()), atol=1e-5)


def test_the_card_and_the_licence_go_along(tiny_teacher: Path, tmp_path: Path) -> None:
    (tiny_teacher / "LICENSE.md").write_text("the teacher's terms")
    (tiny_teacher / "README.md").write_text("---\nlicense: openrail\n---\n")
    teacher = load_teacher(tiny_teacher)
    export_pipeline(teacher, perturbed(teacher), [999], tmp_path / "pipeline", FACTS)
    assert (tmp_path / "pipeline" / "LICENSE.md").read_text() == "the teacher's terms"
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert "license: openrail" in card
    assert "num_inference_steps=1" in card


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_the_card_shows_what_others_wrote_as_text(tiny_teacher: Path, tmp_path: Path, text: str) -> None:
    teacher = replace(load_teacher(tiny_teacher), directory=tmp_path)
    (tmp_path / "README.md").write_text("---\n" + yaml.safe_dump({"license": text}) + "---\n# A teacher\n")
    card = model_card(teacher, "Pipeline", {"num_inference_steps": 1}, CardFacts(text, text, "DMD", "abc", text))
    assert steers(card) == []
    _, front, page = card.split("---\n", 2)
    licence = "other" if text == AWKWARD["half a character"] else neutral(text)
    tags = ["one-step", "distilled", "dmd"]
    assert yaml.safe_load(front) == {"license": licence, "library_name": "diffusers", "tags": tags}
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page)
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    kinds |= {token.type for outer in tokens for token in outer.children or []}
    shown = {"heading", "paragraph", "bullet_list", "list_item", "fence", "inline", "text", "text_special", "softbreak"}
    assert kinds <= shown, kinds - shown
    assert sum(token.type == "heading_open" for token in tokens) == 1


BROKEN = [b"\xff\xfe", b"---\n" + b"[" * 9000, b"---\na: &a [*a]\n---\n", b"---\n- x\n---\n", b"---\n", b"x"]


@pytest.mark.parametrize("card", BROKEN)
def test_a_card_that_cannot_be_read_ends_no_run(tiny_teacher: Path, tmp_path: Path, card: bytes) -> None:
    teacher = replace(load_teacher(tiny_teacher), directory=tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    assert "license: other\n" in model_card(teacher, "Pipeline", {"num_inference_steps": 1}, FACTS)


def test_what_no_stock_pipeline_calls_is_refused(tiny_ddpm: Path) -> None:
    teacher = load_teacher(tiny_ddpm)
    with pytest.raises(BadInputError, match="no pipeline"):
        check_exportable(replace(teacher, num_class_embeds=10), Method())
