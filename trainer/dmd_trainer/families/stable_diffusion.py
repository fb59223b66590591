"""Stable Diffusion 1.x and 2.x: latents, one CLIP text encoder (arXiv 2112.10752)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from packaging.version import InvalidVersion, Version

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.ddpm import shrink_levels
from dmd_trainer.families.family import GROUPS, WIDTH, Config, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dmd_trainer.diffusion.schedules import Schedule
    from dmd_trainer.families.teacher import Teacher

PROMPT_TOKENS = 77
"""What CLIP's text encoders read of a prompt (arXiv 2103.00020, section 2.4)."""
LATENTS = 8
"""Height and width of a shrunken teacher's latents."""
OLD_SIZE = 64
"""What the pipeline takes for the size of latents where a smaller one was saved by diffusers before 0.9."""


class StableDiffusion(Family):
    """Latents of a VAE, denoised under a prompt."""

    networks: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    exports: ClassVar[tuple[str, ...]] = pipelines
    published: ClassVar[Mapping[str, str]] = {"sd15": "stable-diffusion-v1-"}
    encoders: ClassVar[tuple[str, ...]] = ("CLIPTextModel",)
    absent: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor")
    understood: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "time_cond_proj_dim": (None,),  # guidance as an input, of networks that were distilled already
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text"),
        "encoder_hid_dim_type": (None, "text_proj"),
    }

    def check_configurations(self, network: Config, scheduler: Config) -> None:
        super().check_configurations(network, scheduler)
        size, saved_by = network.get("sample_size"), str(network.get("_diffusers_version", "1"))
        try:
            misread = isinstance(size, int) and size < OLD_SIZE and Version(saved_by) < Version("0.9.0")
        except InvalidVersion as error:
            raise BadInputError(f"unet/config.json: {saved_by!r} is no _diffusers_version; remove it") from error
        if misread:
            raise BadInputError(
                f"unet/config.json: sample_size {size} of diffusers {saved_by}, which the pipeline takes for "
                f"{OLD_SIZE}; set it to {OLD_SIZE}, or remove _diffusers_version if {size} is meant"
            )

    def pipeline_scheduler(self, scheduler: Config) -> Config:
        """As `StableDiffusionPipeline` corrects it: latents are not clipped, and time steps are counted from 1."""
        corrected = {"steps_offset": 1} if "steps_offset" in scheduler else {}
        return unclipped({**scheduler, "clip_sample": False, **corrected})

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
        """What matters is found by the scheduler."""

    def generator_scheduler(self, schedule: "Schedule", timesteps: Sequence[int]) -> Any:
        from dmd_trainer.families.generator_schedulers import one_step_ddim, several_step_lcm

        if len(timesteps) == 1:
            return one_step_ddim(schedule, timesteps[0])
        return several_step_lcm(schedule, timesteps)

    def generator_pipeline(self, teacher: "Teacher", network: Any, scheduler: Any) -> Any:
        """The teacher's own pipeline, encoders, VAE and safety checker as they are, around the generator."""
        from dmd_trainer.families.pipelines import load_pipeline

        return load_pipeline(teacher.directory, **{self.part: network, "scheduler": scheduler})

    def call_arguments(self, steps: int) -> dict[str, Any]:
        # The generator has learnt what guidance does: a second, unconditional call would only undo it.
        return {"num_inference_steps": steps, "guidance_scale": 0.0}


def unclipped(scheduler: Config) -> Config:
    """A scheduler's configuration whose solvers leave latents, which are not confined to [-1, 1], as they are.

    Raises:
        BadInputError: the pipeline would clip them.
    """
    from dmd_trainer.diffusion.understood import value_of

    for field in ("clip_sample", "thresholding"):
        if value_of(scheduler, field):
            raise BadInputError(
                f"scheduler/scheduler_config.json: {field} is true, which clips latents; set it to false"
            )
    return {**scheduler, "clip_sample": False, "thresholding": False}
