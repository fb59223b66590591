"""Low-rank adapters in a published generator: multiplied into its weights, and as a file of their own."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dmd_api.spec import Lora
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.teacher import Teacher

KOHYA = "kohya.safetensors"
"""The same adapters, for what does not read diffusers' names."""


def merged(teacher: Teacher, lora: Lora, weights: dict[str, Tensor]) -> nn.Module:
    """A plain copy of the teacher's network whose weights hold the adapters' products.

    Args:
        teacher: the adapted network's.
        lora: the manifest's.
        weights: of the network with its adapters.
    """
    adapted = _adapted(teacher, lora, weights)
    adapted.fuse_lora()
    adapted.unload_lora()
    return adapted


def save_lora(
    pipeline: Any, teacher: Teacher, lora: Lora, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype
) -> None:
    """Writes the adapters alone, as `pipeline.load_lora_weights` reads them, and a U-Net's by kohya's names too.

    Loaders disagree about where alpha is read, and take it for the rank where they find none: here it is the rank, and
    the scale that it stood for is in the weights.

    Args:
        pipeline: a diffusers pipeline of the family.
        teacher: the adapted network's.
        lora: the manifest's.
        weights: of the network with its adapters.
        folder: where to.
        dtype: what the file's weights are kept in.
    """
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
    from peft import get_peft_model_state_dict

    scale, part = (lora.alpha or lora.rank) / lora.rank, teacher.family.part
    adapters = {
        name: (value * scale if ".lora_B." in name else value).to(dtype).contiguous()
        for name, value in get_peft_model_state_dict(_adapted(teacher, lora, weights)).items()
    }
    metadata = {"r": lora.rank, "lora_alpha": lora.rank, "target_modules": [*teacher.family.adapted_layers]}
    pipeline.save_lora_weights(
        folder, **{f"{part}_lora_layers": adapters, f"{part}_lora_adapter_metadata": metadata}, safe_serialization=True
    )
    if part == "unet":
        kohya = convert_state_dict_to_kohya({f"{part}.{name}": value for name, value in adapters.items()})
        save_file(kohya, folder / KOHYA)


def _adapted(teacher: Teacher, lora: Lora, weights: dict[str, Tensor]) -> Any:
    adapted: Any = teacher.trainable_network().cpu().float()
    add_lora(adapted, lora, teacher.family.adapted_layers)
    adapted.load_state_dict(weights)
    return adapted
