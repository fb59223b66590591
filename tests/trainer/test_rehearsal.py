"""A run's end is rehearsed on a small copy of the teacher: what only the export or the end would show is refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Spec
from dmd_api.stages import Stage
from dmd_trainer.families.family import Family
from dmd_trainer.families.miniature import save_miniature
from dmd_trainer.families.stable_diffusion import StableDiffusion
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.rehearsal import rehearse_end, sample_conditions
from dmd_trainer.runtime.fetch import ASSETS
from tests.conftest import MANIFEST
from tests.stages import run_stage_here, tracked_status
from tests.trainer.text_teachers import MAKERS, make_sd

META = torch.device("meta")


def spec_of(method: dict[str, Any], **data: Any) -> Spec:
    content: dict[str, Any] = copy.deepcopy(MANIFEST)
    content["spec"] |= {"method": method, "data": data}
    content["spec"]["evaluation"]["metrics"] = ["FID"]
    return parse_manifest(content).spec


PROMPTS = {"prompts": {"uri": "builtin://emoji"}}


@pytest.mark.parametrize("family", MAKERS)
def test_a_text_teachers_end_is_rehearsed(family: str, tmp_path: Path) -> None:
    teacher = load_teacher(MAKERS[family](tmp_path / "teacher"), device=META)
    rehearse_end(teacher, spec_of({"name": "DMD2"}, **PROMPTS), tmp_path / "rehearsal")
    assert (tmp_path / "rehearsal" / "generator" / "model_index.json").exists()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "DMD2", "generatorTimestep": 399},
        {"name": "DMD2", "generatorSteps": 4},
        {"name": "DMD2", "lora": {"rank": 4, "alpha": 8}},
        {"name": "DMD", "regression": {"pairs": 8, "solver": "PNDM", "solverSteps": 5}},
    ],
    ids=str,
)
def test_every_kind_of_generator_is_rehearsed(method: dict[str, Any], tmp_path: Path) -> None:
    """Of several steps too: all of a pipeline's noise comes from one stream."""
    teacher = load_teacher(make_sd(tmp_path / "teacher"), device=META)
    rehearse_end(teacher, spec_of(method, **PROMPTS), tmp_path / "rehearsal")


def test_the_copy_is_small_and_the_rest_is_the_teachers_own(tmp_path: Path) -> None:
    source = ASSETS / "emoji-teacher"
    save_miniature(source, StableDiffusion(), tmp_path)
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    kept = ("scaling_factor", "latent_channels", "down_block_types", "act_fn")
    ours, theirs = (json.loads((folder / "vae" / "config.json").read_text()) for folder in (tmp_path, source))
    assert {key: ours[key] for key in kept} == {key: theirs[key] for key in kept}
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.safetensors")) for folder in (tmp_path, source)]
    assert sizes[0] < sizes[1] / 4


def test_a_pipeline_that_draws_other_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE's setting that the export carries and the trainer does not know."""
    from dmd_trainer.families.autoencoder import Autoencoder

    decode = Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, latents: decode(self, latents + 0.5))
    teacher = load_teacher(make_sd(tmp_path / "teacher"), device=META)
    with pytest.raises(BadInputError, match=r"draws other pixels with the exported generator .* of 255"):
        rehearse_end(teacher, spec_of({"name": "DMD2"}, **PROMPTS), tmp_path / "rehearsal")


def test_an_export_that_cannot_be_called_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "call_arguments", lambda self, steps: {"steps": steps})
    monkeypatch.setattr(StableDiffusion, "call_arguments", lambda self, steps: {"steps": steps})
    teacher = load_teacher(make_sd(tmp_path / "teacher"), device=META)
    with pytest.raises(BadInputError, match="a generator like it cannot be exported and called"):
        rehearse_end(teacher, spec_of({"name": "DMD2"}, **PROMPTS), tmp_path / "rehearsal")


def test_conditions_have_the_shapes_that_real_encoders_give(tmp_path: Path) -> None:
    folder = MAKERS["sdxl"](tmp_path / "teacher")
    spec = spec_of({"name": "DMD2"}, **PROMPTS)
    empty, whole = (sample_conditions(load_teacher(folder, device=d), spec, torch.device(d)) for d in ("meta", "cpu"))
    for found, expected in zip(empty, whole, strict=True):
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}  # type: ignore[union-attr]


def preflight_error(manifest: dict[str, Any], folder: Path) -> str:
    error = run_stage_here(Stage.PREFLIGHT, manifest, folder).error
    assert error is not None
    assert error.reason == "BadInput", error
    return error.message


def test_parts_that_do_not_fit_each_other_are_refused_by_their_shapes(
    manifest_dict: dict[str, Any], tmp_path: Path
) -> None:
    """Each part by itself is whole; and the run in MLflow says that it failed."""
    folder = make_sd(tmp_path / "teacher")
    other = MAKERS["sdxl"](tmp_path / "other")
    shutil.rmtree(folder / "unet")
    shutil.copytree(other / "unet", folder / "unet")
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"addition_embed_type": None}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    weights = {key: value for key, value in weights.items() if not key.startswith("add_embedding")}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    manifest_dict["spec"] |= {"teacher": {"uri": folder.as_uri()}, "data": PROMPTS, "method": {"name": "DMD2"}}
    manifest_dict["spec"]["evaluation"]["metrics"] = ["FID"]
    assert "its parts do not fit each other" in preflight_error(manifest_dict, tmp_path)
    assert tracked_status(tmp_path) == "FAILED"


def test_preflight_leaves_a_scheduled_run_and_reads_no_weights(
    manifest_dict: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    """NaN is nothing that a header shows: the first stage that computes finds it, before anything long begins."""
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({k: torch.full_like(v, torch.nan) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    manifest_dict["spec"]["teacher"]["uri"] = folder.as_uri()
    assert run_stage_here(Stage.PREFLIGHT, manifest_dict, tmp_path).error is None
    assert tracked_status(tmp_path) == "SCHEDULED"
    error = run_stage_here(Stage.PREPARE, manifest_dict, tmp_path).error
    assert error is not None
    assert error.reason == "BadInput"
    assert "its Heun solver makes NaN" in error.message
    manifest_dict["spec"]["method"] = {"name": "DMD2"}
    error = run_stage_here(Stage.DISTILL, manifest_dict, tmp_path).error
    assert error is not None
    assert (error.reason, "makes NaN" in error.message) == ("BadInput", True)


def test_a_vae_that_overflows_is_found_before_anything_long_begins(
    manifest_dict: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_sd(tmp_path / "teacher")
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_out.bias"] = torch.full_like(weights["decoder.conv_out.bias"], torch.inf)
    save_file(weights, file, metadata={"format": "pt"})
    manifest_dict["spec"] |= {"teacher": {"uri": folder.as_uri()}, "data": PROMPTS, "method": {"name": "DMD2"}}
    manifest_dict["spec"]["evaluation"]["metrics"] = ["FID"]
    error = run_stage_here(Stage.DISTILL, manifest_dict, tmp_path).error
    assert error is not None
    assert (error.reason, "vae/ decodes to NaN" in error.message) == ("BadInput", True)
