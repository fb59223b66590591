"""Counts the operations of one sample's forward passes, on tensors without data."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.fake_networks import fake_levels, fill, noise_level
from dmd_trainer.planning.gpus import Flops


def count_flops(architecture: Architecture) -> Flops:
    """Counts the operations of one sample's forward passes."""
    network = architecture.build_network()
    decoder: Any = None if architecture.decoder is None else architecture.build_decoder()
    with FakeTensorMode(), torch.no_grad():
        sample = torch.empty(1, *architecture.sample_shape)
        denoiser = Denoiser(fill(network), fake_levels(), Prediction.EPSILON)
        with FlopCounterMode(display=False) as counter:
            denoiser(sample, noise_level(1), architecture.conditions(1))
        passes = float(counter.get_total_flops())
        if decoder is None:
            return Flops(passes, 0.0)
        fill(decoder)
        with FlopCounterMode(display=False) as counter:
            decoder.decode(sample)
        return Flops(passes, float(counter.get_total_flops()))
