"""Low-rank adapters on the generator's attention (Hu et al. 2021, arXiv 2106.09685), by peft through diffusers."""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmd_api.manifest import Lora

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(network: Any, lora: Lora) -> None:
    """Freezes a diffusers network and adds trainable adapters, which start as no change."""
    from peft import LoraConfig

    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=TARGETS))


def merged(network: Any, lora: Lora, weights: dict[str, Tensor]) -> nn.Module:
    """A plain copy of `network` whose weights hold the adapters' products.

    Args:
        network: the teacher's.
        lora: the manifest's.
        weights: of the network with its adapters.
    """
    adapted = _adapted(network, lora, weights)
    adapted.fuse_lora()
    adapted.unload_lora()
    return adapted


def save_lora(pipeline: Any, part: str, network: Any, lora: Lora, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes the adapters alone, as `pipeline.load_lora_weights` reads them.

    Args:
        pipeline: a diffusers pipeline of the family.
        part: "unet" or "transformer".
        network: the teacher's.
        lora: the manifest's.
        weights: of the network with its adapters.
        folder: where to.
    """
    from peft import get_peft_model_state_dict

    adapters = get_peft_model_state_dict(_adapted(network, lora, weights))
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": adapters}, safe_serialization=True)


def _adapted(network: Any, lora: Lora, weights: dict[str, Tensor]) -> Any:
    adapted = copy.deepcopy(network).cpu().float()
    add_lora(adapted, lora)
    adapted.load_state_dict(weights)
    return adapted
