"""Every latent family's VAE there and back, as its own pipelines decode and encode."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from dmd_api.errors import BadInputError
from dmd_trainer.families.teacher import load_teacher
from tests.trainer.conformance.teachers import PROMPTS, close, noise_for, own_pipeline, teacher_folder, text_parts

CHANNELS = {"sd": 4, "sdxl": 4, "sd3": 16}
IMAGE_TO_IMAGE = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
}
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"scaling_factor": 0.18215},
    {"shift_factor": 0.3},
    {"latents_mean": [-1.6, 1.1, 3.2, -0.5], "latents_std": [8.4, 5.9, 6.0, 5.2]},
    {"latents_mean": [-1.6, 1.1, 3.2, -0.5]},
    {"use_quant_conv": False, "use_post_quant_conv": False},
    {"force_upcast": False},
]


@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=lambda changes: "-".join(changes) or "plain")
@pytest.mark.parametrize("family", CHANNELS)
@torch.no_grad()
def test_latents_are_decoded_and_encoded_as_by_the_pipelines(
    family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields that a pipeline does not read change nothing: the others' mean and deviation are SDXL's alone."""
    repeated = {
        key: value * (CHANNELS[family] // 4) if isinstance(value, list) else value for key, value in changes.items()
    }
    teacher = load_teacher(teacher_folder(family, tmp_path / "teacher", vae=repeated))
    pipeline = own_pipeline(teacher.directory, **text_parts(family))
    arguments = {"num_inference_steps": 1, "guidance_scale": 0.0, "height": 16, "width": 16}
    noise = noise_for(teacher.sample_shape)
    latents, images = (
        pipeline(PROMPTS, latents=noise.clone(), output_type=kind, **arguments).images for kind in ("latent", "pt")
    )
    close(teacher.autoencoder.decode(latents).clamp(-1, 1), images * 2 - 1)

    # Those for images encode as they do to decode; they draw from the encoder's distribution, whose mode is wanted.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    unnoised = SimpleNamespace(add_noise=lambda x0, *_: x0, scale_noise=lambda x0, *_: x0)
    stub = SimpleNamespace(
        vae=pipeline.vae, scheduler=unnoised, text_encoder_2=None, vae_scale_factor=2, latent_channels=CHANNELS[family]
    )
    expected = IMAGE_TO_IMAGE[family].prepare_latents(stub, images, None, 2, 1, torch.float32, torch.device("cpu"))
    close(teacher.autoencoder.encode(images), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": {"_class_name": "AutoencoderTiny"}, "model_index": {"vae": ["diffusers", "AutoencoderTiny"]}},
        {"vae": {"_class_name": "AutoencoderTiny"}},
        {"model_index": {"vae": ["diffusers", "AutoencoderTiny"]}},
        {"model_index": {"scheduler": ["diffusers", "DDIMScheduler"]}},
        {"unet": {"_class_name": "UNet2DModel"}},
    ],
)
def test_a_part_of_another_class_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """diffusers goes by the index, or leaves out what does not fit and draws the rest at random."""
    with pytest.raises(BadInputError, match=r"AutoencoderTiny|DDIMScheduler|UNet2DModel"):
        load_teacher(teacher_folder("sd", tmp_path / "teacher", **changes))


def test_a_missing_shift_is_refused_where_the_pipeline_needs_it(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="shift_factor"):
        load_teacher(teacher_folder("sd3", tmp_path / "teacher", vae={"shift_factor": None}))


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("sd", "time_cond_proj_dim", 8),
        ("sd", "class_embed_type", "timestep"),
        ("sd", "addition_embed_type", "image"),
        ("sd", "encoder_hid_dim_type", "image_proj"),
        ("sdxl", "time_cond_proj_dim", 8),
        ("ddpm", "class_embed_type", "timestep"),
        ("edm", "time_embedding_type", "fourier"),
    ],
)
def test_a_network_that_is_called_in_another_way_is_refused_by_the_field(
    family: str, field: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=field):
        load_teacher(teacher_folder(family, tmp_path / "teacher", unet={field: value}))


def test_latents_whose_size_an_old_pipeline_takes_for_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="sample_size"):
        load_teacher(teacher_folder("sd", tmp_path / "teacher", unet={"_diffusers_version": "0.6.0"}))
