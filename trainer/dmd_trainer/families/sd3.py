"""Stable Diffusion 3: latents, a flow-matching transformer, two CLIP text encoders and T5 (arXiv 2403.03206)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.family import HEAD_WIDTH, WIDTH, Config, Tap
from dmd_trainer.families.stable_diffusion import LATENTS, PROMPT_TOKENS, StableDiffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dmd_trainer.diffusion.schedules import Schedule

T5_TOKENS = 256
"""What the pipeline lets T5 read of a prompt, beside CLIP's tokens."""


class SD3(StableDiffusion):
    """Latents of a VAE; the network predicts a flow's velocity."""

    networks: ClassVar[tuple[str, ...]] = ("SD3Transformer2DModel",)
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    exports: ClassVar[tuple[str, ...]] = pipelines
    part: ClassVar[str] = "transformer"
    published: ClassVar[Mapping[str, str]] = {"sd3": "stable-diffusion-3-medium"}
    encoders: ClassVar[tuple[str, ...]] = ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection")
    absent: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    predictions: ClassVar[tuple[Prediction, ...]] = (Prediction.FLOW,)
    understood: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def pipeline_scheduler(self, scheduler: Config) -> Config:
        return scheduler

    def latent_statistics(self, vae: Config) -> "tuple[Sequence[float], Sequence[float]]":
        if vae.get("shift_factor") is None:
            raise BadInputError("vae/config.json: shift_factor is missing, which the pipeline needs; write it there")
        return [float(vae["shift_factor"])], [1.0]

    def check_exportable(self, prediction: Prediction, classes: int | None, method: Method) -> None:
        if method.generator_steps > 1:
            raise BadInputError(
                "spec.method.generatorSteps: diffusers has no sampler that adds fresh noise between the steps of a "
                "flow-matching generator; leave it at 1"
            )

    def generator_scheduler(self, schedule: "Schedule", timesteps: Sequence[int]) -> Any:
        from dmd_trainer.families.generator_schedulers import one_step_flow

        return one_step_flow(schedule, timesteps[0])

    def blocks(self, network: Any) -> "list[nn.Module]":
        return list(network.transformer_blocks)

    def tap(self, network: Any) -> Tap | None:
        """A transformer has no bottleneck."""
        return None

    def empty_conditions(self, network: Config, batch: int) -> "dict[str, Tensor]":
        import torch

        width = int(network["joint_attention_dim"])
        return {
            "encoder_hidden_states": torch.zeros(batch, PROMPT_TOKENS + T5_TOKENS, width),
            "pooled_projections": torch.zeros(batch, int(network["pooled_projection_dim"])),
        }

    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        return dict(copy.deepcopy(network)) | {
            "sample_size": LATENTS,
            "num_layers": 2,
            "attention_head_dim": HEAD_WIDTH,
            "num_attention_heads": width // HEAD_WIDTH,
            "caption_projection_dim": width,
            "joint_attention_dim": 2 * WIDTH,
            "pooled_projection_dim": 2 * WIDTH,
            "pos_embed_max_size": LATENTS,
        }

    def encode(self, pipeline: Any, prompts: list[str], device: "torch.device") -> "dict[str, Tensor]":
        hidden, _, pooled, _ = pipeline.encode_prompt(
            prompt=prompts, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def encoder_stand_ins(self, directory: Path) -> dict[str, Any]:
        """Without T5, its embeddings are zeros of a width that only the transformer's configuration knows."""
        import torch

        from dmd_trainer.families.loading import part_config

        config = part_config(directory, self.part)
        with torch.device("meta"):
            return {self.part: self.network_class(config).from_config(config)}
