"""The numbers of weights of a run's networks, counted without making them."""

import torch
from torch import nn

from dmd_api.spec import Lora
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.measured import Sizes


def count_network_sizes(architecture: Architecture, matching: bool, gan: bool, lora: Lora | None) -> Sizes:
    """Counts the weights of a teacher's network, and of what is trained of it."""
    family, network = architecture.family, architecture.build_network()
    parameters = _count(network)
    sizes = [_count(block) for block in family.blocks(network)]
    with torch.device("meta"):
        fake_score = _count(FakeScore(network, family.tap(network) if gan else None)) if matching else 0
        if lora is not None:
            add_lora(network, lora, family.adapted_layers)
    adapters = _count(network) - parameters
    return Sizes(
        network=parameters,
        largest_block=max(sizes),
        generator=adapters or parameters,
        adapters=adapters,
        fake_score=fake_score,
        decoder=0 if architecture.decoder is None else _count(architecture.build_decoder()),
        encoders=architecture.encoder_parameters,
    )


def _count(module: nn.Module) -> int:
    return sum(torch.Size(parameter.shape).numel() for parameter in module.parameters())
