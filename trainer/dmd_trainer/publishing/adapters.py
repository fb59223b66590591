"""Low-rank adapters in a published generator: multiplied into its weights, and as a file of their own."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmd_api.spec import Lora
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.teacher import Teacher


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


def save_lora(pipeline: Any, teacher: Teacher, lora: Lora, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes the adapters alone, as `pipeline.load_lora_weights` reads them.

    Args:
        pipeline: a diffusers pipeline of the family.
        teacher: the adapted network's.
        lora: the manifest's.
        weights: of the network with its adapters.
        folder: where to.
    """
    from peft import get_peft_model_state_dict

    adapters = get_peft_model_state_dict(_adapted(teacher, lora, weights))
    pipeline.save_lora_weights(folder, **{f"{teacher.family.part}_lora_layers": adapters}, safe_serialization=True)


def _adapted(teacher: Teacher, lora: Lora, weights: dict[str, Tensor]) -> Any:
    adapted: Any = teacher.trainable_network().cpu().float()
    add_lora(adapted, lora, teacher.family.adapted_layers)
    adapted.load_state_dict(weights)
    return adapted
