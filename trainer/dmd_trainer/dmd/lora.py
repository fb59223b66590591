"""Low-rank adapters on the generator's attention (Hu et al. 2021, arXiv 2106.09685), by peft through diffusers."""

from typing import Any

from dmd_api.spec import Lora

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(network: Any, lora: Lora) -> None:
    """Freezes a diffusers network and adds trainable adapters, which start as no change."""
    from peft import LoraConfig

    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=TARGETS))
