"""Low-rank adapters on the generator's attention (Hu et al. 2021, arXiv 2106.09685), by peft through diffusers."""

from collections.abc import Sequence
from typing import Any

from dmd_api.spec import Lora


def add_lora(network: Any, lora: Lora, layers: Sequence[str]) -> None:
    """Freezes a diffusers network and adds trainable adapters, which start as no change.

    Args:
        network: changed in place.
        lora: the manifest's.
        layers: the layers that get adapters, by the ends of their names.
    """
    from peft import LoraConfig

    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=[*layers]))
