"""Counts the operations of one sample's forward passes, on tensors without data."""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.fake_networks import fake_levels, fill, noise_level
from dmd_trainer.planning.gpus import Flops


def count_flops(architecture: Architecture) -> Flops:
    """Counts the operations of one sample's forward passes."""
    network = architecture.build_network()
    with torch.device("meta"):
        fake_score = FakeScore(network, architecture.family.tap(network))
    decoder: Any = None if architecture.decoder is None else architecture.build_decoder()
    with FakeTensorMode(), torch.no_grad():
        sample = torch.empty(1, *architecture.sample_shape)
        denoiser = Denoiser(fill(fake_score), fake_levels(), Prediction.EPSILON)
        inputs = (sample, noise_level(1), architecture.conditions(1))
        found = [_count(lambda: denoiser(*inputs)), 0.0, 0.0]
        if fake_score.head is not None:
            found[1] = _count(lambda: denoiser.call_network(*inputs, denoise=False, classify=True))
        if decoder is not None:
            fill(decoder)
            found[2] = _count(lambda: decoder.decode(sample))
        return Flops(*found)


def _count(action: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops())
