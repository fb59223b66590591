"""Stable Diffusion XL: latents, two CLIP text encoders, and the picture's size as a condition (arXiv 2307.01952)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dmd_trainer.families.family import WIDTH, Config
from dmd_trainer.families.stable_diffusion import StableDiffusion, unclipped

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dmd_trainer.diffusion.denoiser import Condition

SIZE_CONDITIONS = 6
"""Numbers that the network is given about a picture's size and crop (arXiv 2307.01952, section 2.2)."""
SIZE_WIDTH = 8
"""Of what a shrunken network makes of each of them."""


class SDXL(StableDiffusion):
    """Latents of a VAE, denoised under a prompt and a size."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    exports: ClassVar[tuple[str, ...]] = pipelines
    published: ClassVar[Mapping[str, str]] = {"sdxl": "stable-diffusion-xl-base"}
    encoders: ClassVar[tuple[str, ...]] = ("CLIPTextModel", "CLIPTextModelWithProjection")
    absent: ClassVar[tuple[str, ...]] = ()
    understood: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **StableDiffusion.understood,
        "addition_embed_type": ("text_time",),
    }

    def matches(self, network: Config, scheduler: Config) -> bool:
        return super().matches(network, scheduler) and network.get("addition_embed_type") == "text_time"

    def pipeline_scheduler(self, scheduler: Config) -> Config:
        return unclipped(scheduler)

    def latent_statistics(self, vae: Config) -> "tuple[Sequence[float], Sequence[float]]":
        mean, std = vae.get("latents_mean"), vae.get("latents_std")
        return super().latent_statistics(vae) if mean is None or std is None else (mean, std)

    def empty_conditions(self, network: Config, batch: int) -> "dict[str, Tensor]":
        import torch

        pooled = network["projection_class_embeddings_input_dim"]
        pooled -= SIZE_CONDITIONS * network["addition_time_embed_dim"]
        return super().empty_conditions(network, batch) | {
            "text_embeds": torch.zeros(batch, pooled),
            "time_ids": torch.zeros(batch, SIZE_CONDITIONS),
        }

    def added_conditions(self, network: Any, image_size: tuple[int, int]) -> "Condition":
        """The sizes of an image that was not cropped."""
        import torch

        height, width = image_size
        return {"time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)}

    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        return super().shrink(network, width) | {
            "cross_attention_dim": 2 * WIDTH,
            "addition_time_embed_dim": SIZE_WIDTH,
            "projection_class_embeddings_input_dim": WIDTH + SIZE_CONDITIONS * SIZE_WIDTH,
        }

    def encode(self, pipeline: Any, prompts: list[str], device: "torch.device") -> "dict[str, Tensor]":
        hidden, _, pooled, _ = pipeline.encode_prompt(
            prompt=prompts, prompt_2=None, device=device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": hidden, "text_embeds": pooled}

    def encode_negative(self, pipeline: Any, device: "torch.device") -> "dict[str, Tensor]":
        """The empty prompt's condition, or zeros where the pipeline says so."""
        import torch

        empty = super().encode_negative(pipeline, device)
        if pipeline.config.force_zeros_for_empty_prompt:
            return {key: torch.zeros_like(value) for key, value in empty.items()}
        return empty
