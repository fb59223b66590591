"""Teachers load from diffusers' format, and say what is wrong with what does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.fetch import local_path
from tests.trainer.text_teachers import make_sd


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


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"module.{k}": v for k, v in w.items()}, r"names begin with module\., as DistributedDataParallel"),
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"names begin with _orig_mod\., as torch\.compile"),
        (lambda w: {k: v for k, v in w.items() if "mid_block" not in k}, r"\d+ missing \(.*mid_block"),
        (lambda w: w | {next(iter(w)): torch.zeros(3, 5)}, r"\(3, 5\)|\[3, 5\]"),
    ],
)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_another_network_are_named(
    text_teacher: Path, tmp_path: Path, part: str, change: Callable[[Any], Any], message: str, device: str
) -> None:
    """Also by their headers alone. Without this the libraries go on with random weights, or without any."""
    folder = tmp_path / "teacher"
    shutil.copytree(text_teacher, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    if part == "text_encoder" and "mid_block" in message:
        weights = {k.replace("layers.1", "mid_block"): v for k, v in weights.items()}
        message = r"missing \(.*layers\.1"
    save_file(change(weights), file, metadata={"format": "pt"})
    load = TextEncoder if part == "text_encoder" else load_teacher
    with pytest.raises(BadInputError, match=rf"spec\.teacher\.uri: .*/{part}: .*{message}"):
        load(folder, device=torch.device(device))


def test_weights_that_nobody_asks_for_are_no_error(text_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(text_teacher, folder)
    for file in folder.rglob("*.safetensors"):
        save_file(load_file(file) | {"position_ids": torch.zeros(2)}, file, metadata={"format": "pt"})
    found, expected = (load_teacher(path).denoiser.network.state_dict() for path in (folder, text_teacher))
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_shards_and_their_index_agree(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    network = load_teacher(folder).denoiser.network
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="20KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    for device in ("cpu", "meta"):
        assert load_teacher(folder, device=device)
    name, shard = next(iter(content["weight_map"].items()))
    weights = load_file(folder / "unet" / shard)
    save_file({k: v for k, v in weights.items() if k != name}, folder / "unet" / shard, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=rf"{shard} do not name the same weights \({name}\)"):
        load_teacher(folder)
    (folder / "unet" / shard).unlink()
    with pytest.raises(BadInputError, match=shard):
        load_teacher(folder)


def test_on_the_meta_device_shapes_are_those_of_the_weights(text_teacher: Path) -> None:
    empty, whole = load_teacher(text_teacher, device="meta"), load_teacher(text_teacher)
    assert (empty.sample_shape, empty.image_shape) == (whole.sample_shape, whole.image_shape)
    assert {p.device.type for p in [*empty.denoiser.network.parameters(), *empty.autoencoder.parameters()]} == {"meta"}
    assert len(empty.denoiser.schedule) == len(whole.denoiser.schedule)


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("teachers") / "sd")


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("uri", ["builtin://no-such-teacher", "file:///no/such/folder"])
def test_a_uri_with_nothing_behind_it_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing at"):
        local_path(uri, tmp_path)
