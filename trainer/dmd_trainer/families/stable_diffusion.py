"""Stable Diffusion 1.x and 2.x: latents, one CLIP text encoder (arXiv 2112.10752)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.ddpm import shrink_levels
from dmd_trainer.families.family import GROUPS, WIDTH, Config, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dmd_trainer.families.teacher import Teacher

PROMPT_TOKENS = 77
"""What CLIP's text encoders read of a prompt (arXiv 2103.00020, section 2.4)."""
LATENTS = 8
"""Height and width of a shrunken teacher's latents."""


class StableDiffusion(Family):
    """Latents of a VAE, denoised under a prompt."""

    networks: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    exports: ClassVar[tuple[str, ...]] = pipelines
    published: ClassVar[Mapping[str, str]] = {"sd15": "stable-diffusion-v1-"}
    encoders: ClassVar[tuple[str, ...]] = ("CLIPTextModel",)
    absent: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor")

    def empty_conditions(self, network: Config, batch: int) -> "dict[str, Tensor]":
        import torch

        return {"encoder_hidden_states": torch.zeros(batch, PROMPT_TOKENS, int(network["cross_attention_dim"]))}

    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        return shrink_levels(network, width, LATENTS) | {
            "norm_num_groups": GROUPS,
            "attention_head_dim": 2,  # which this class means as the number of heads
            "cross_attention_dim": WIDTH,
            "transformer_layers_per_block": 1,
        }

    def encode(self, pipeline: Any, prompts: list[str], device: "torch.device") -> "dict[str, Tensor]":
        hidden, _ = pipeline.encode_prompt(prompts, device, 1, False)
        return {"encoder_hidden_states": hidden}

    def check_exportable(self, prediction: Prediction, classes: int | None, method: Method) -> None:
        if method.generator_steps > 1 and prediction == Prediction.FLOW:
            raise BadInputError(
                "spec.method.generatorSteps: diffusers has no sampler that adds fresh noise between the steps of a "
                "flow-matching generator; leave it at 1"
            )

    def generator_pipeline(self, teacher: "Teacher", network: Any, timesteps: Sequence[int]) -> Any:
        """The teacher's own pipeline around the generator."""
        from dmd_trainer.families.generator_schedulers import one_step_ddim, one_step_flow, several_step_lcm

        pipeline, schedule = _own_pipeline(teacher, network), teacher.denoiser.schedule
        if teacher.denoiser.prediction == Prediction.FLOW:
            pipeline.scheduler = one_step_flow(pipeline.scheduler.config, schedule, timesteps[0])
        elif len(timesteps) == 1:
            pipeline.scheduler = one_step_ddim(schedule, timesteps[0])
        else:
            pipeline.scheduler = several_step_lcm(pipeline.scheduler.config, schedule, timesteps)
        return pipeline

    def call_arguments(self, steps: int) -> dict[str, Any]:
        # The generator has learnt what guidance does: a second, unconditional call would only undo it.
        return {"num_inference_steps": steps, "guidance_scale": 0.0}


def _own_pipeline(teacher: "Teacher", network: Any) -> Any:
    """The teacher's own pipeline, encoders, VAE and safety checker as they are, around another network."""
    from dmd_trainer.families.pipelines import load_pipeline

    return load_pipeline(teacher.directory, **{teacher.family.part: network})
