"""Teachers load from diffusers' format, and say what is wrong with what does not."""

import json
import shutil
from pathlib import Path

import pytest

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime.fetch import local_path


def test_the_schedule_and_prediction_come_from_the_models_own_scheduler(tiny_teacher: Path, tiny_ddpm: Path) -> None:
    edm, ddpm = load_teacher(tiny_teacher), load_teacher(tiny_ddpm)
    assert edm.denoiser.prediction == Prediction.EDM
    assert edm.denoiser.schedule.sigma_data == 0.75
    assert ddpm.denoiser.prediction == Prediction.EPSILON
    assert edm.sample_shape == ddpm.sample_shape == (1, 8, 8)
    assert edm.num_class_embeds == 10
    assert ddpm.num_class_embeds is None
    assert edm.digest != ddpm.digest
    assert not any(p.requires_grad for p in edm.denoiser.network.parameters())


def test_the_shipped_teacher_and_classifier_load(tmp_path: Path) -> None:
    teacher = load_teacher(local_path("builtin://digits-teacher", tmp_path))
    assert teacher.conditions(10).count == 10
    size = sum(p.stat().st_size for p in teacher.directory.rglob("*") if p.is_file())
    assert size < 5_000_000


@pytest.mark.parametrize("count", [None, 3])
def test_class_counts_must_agree(tiny_teacher: Path, count: int | None) -> None:
    with pytest.raises(BadInputError, match=r"spec\.data\.classLabels"):
        load_teacher(tiny_teacher).conditions(count)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a diffusers pipeline"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "no unet/"),
        (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler/"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "cannot be loaded"),
        (lambda f: rewrite(f / "unet" / "config.json", _class_name="Transformer2DModel"), "Transformer2DModel"),
        (lambda f: rewrite(f / "unet" / "config.json", block_out_channels=[8, 32]), "cannot be loaded"),
        (lambda f: rewrite(f / "scheduler" / "scheduler_config.json", _class_name="VQDiffusion"), "VQDiffusion"),
    ],
)
def test_each_damage_is_named(tiny_teacher: Path, tmp_path: Path, damage: object, message: str) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(BadInputError, match=message):
        load_teacher(folder)


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("uri", ["builtin://no-such-teacher", "file:///no/such/folder"])
def test_a_uri_with_nothing_behind_it_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing at"):
        local_path(uri, tmp_path)
