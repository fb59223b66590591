"""Pixel teachers with a variance-preserving schedule: DDPM's U-Nets (arXiv 2006.11239)."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.family import GROUPS, HEAD_WIDTH, Config, Family, refuse_steps

if TYPE_CHECKING:
    from torch import Tensor

    from dmd_trainer.diffusion.schedules import Schedule
    from dmd_trainer.families.teacher import Teacher

PIXELS = 32
"""Height and width of a shrunken teacher of pixels: the builtin pictures'."""


class DDPM(Family):
    """Pixels, unconditional or class-conditional."""

    networks: ClassVar[tuple[str, ...]] = ("UNet2DModel",)
    exports: ClassVar[tuple[str, ...]] = ("DDIMPipeline",)
    published: ClassVar[Mapping[str, str]] = {"ddpm-cifar10": "ddpm-cifar10-32"}
    understood: ClassVar[Mapping[str, tuple[Any, ...]]] = {"class_embed_type": (None,)}

    def empty_conditions(self, network: Config, batch: int) -> "dict[str, Tensor]":
        import torch

        labelled = network.get("num_class_embeds") is not None
        return {"class_labels": torch.zeros(batch, dtype=torch.int64)} if labelled else {}

    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        small = shrink_levels(network, width, PIXELS)
        small |= {"norm_num_groups": GROUPS, "attention_head_dim": HEAD_WIDTH}
        if network.get("attn_norm_num_groups") is not None:
            small["attn_norm_num_groups"] = GROUPS
        return small

    def check_exportable(self, prediction: Prediction, classes: int | None, method: Method) -> None:
        refuse_steps(method)
        if classes is not None:
            raise BadInputError(
                "spec.teacher.uri: diffusers has no pipeline for a class-conditional UNet2DModel with a "
                "variance-preserving schedule, so its generator could not be loaded without our code; use an EDM "
                "teacher, or an unconditional one"
            )

    def generator_scheduler(self, schedule: "Schedule", timesteps: Sequence[int]) -> Any:
        from dmd_trainer.families.generator_schedulers import one_step_ddim

        return one_step_ddim(schedule, timesteps[0])

    def generator_pipeline(self, teacher: "Teacher", network: Any, scheduler: Any) -> Any:
        from diffusers import DDIMPipeline

        return DDIMPipeline(network, scheduler)

    def call_arguments(self, steps: int) -> dict[str, Any]:
        return {"num_inference_steps": steps, "eta": 0.0}


def shrink_levels(network: Config, width: int, size: int) -> dict[str, Any]:
    """A U-Net's configuration with one layer a level, each level as much wider than the first as before."""
    small = dict(copy.deepcopy(network))
    widths = network["block_out_channels"]
    return small | {
        "block_out_channels": [width * channels // widths[0] for channels in widths],
        "layers_per_block": 1,
        "sample_size": size,
    }
