"""One training step on tensors without data: how much its activations hold.

The networks are the configured ones at their real sizes, the step is the one that trains (`dmd/step.py`), and every
tensor is a fake one (`FakeTensorMode`): shapes, dtypes and lifetimes are as in the real step, contents are not.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dmd_trainer.dmd.step import (
    FakeScoreDraws,
    GeneratorDraws,
    Images,
    Latent,
    Models,
    Noise,
    PairBatch,
    fake_score_losses,
    generator_losses,
    regression_alone,
)
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.fake_networks import FakeNetworks, noise_level
from dmd_trainer.planning.live_tensors import LiveTensors
from dmd_trainer.planning.shape import StepShape


def measure_activations(architecture: Architecture, shape: StepShape) -> int:
    """The most bytes that a step's tensors hold at once, without weights, their gradients and states."""
    networks = FakeNetworks(architecture, shape)
    with FakeTensorMode():
        networks.fill()
        models, live = networks.models(), LiveTensors()
        with live:
            if shape.matching:
                _update_generator(models, architecture, shape, networks)
                _update_fake_score(models, architecture, shape)
            else:
                losses = regression_alone(models, _pairs(architecture, shape))
                torch.autograd.backward(list(losses.values()))
    return live.peak


def _update_generator(models: Models, architecture: Architecture, shape: StepShape, networks: FakeNetworks) -> None:
    batch = shape.micro_batch
    latent = Latent(
        _samples(architecture, batch), architecture.conditions(batch), torch.zeros(batch, dtype=torch.int64)
    )
    pairs = _pairs(architecture, shape) if shape.pairs else None
    gan = _noise(architecture, batch) if shape.gan else None
    # As `TrainedNetwork.requires_grad`: the GAN term's gradients pass through the fake score and stop at its weights.
    networks.fake_score.requires_grad_(shape.gathered)
    losses, _ = generator_losses(models, GeneratorDraws(latent, _noise(architecture, batch), pairs, gan))
    torch.stack(list(losses.values())).sum().backward()
    networks.fake_score.requires_grad_(True)


def _update_fake_score(models: Models, architecture: Architecture, shape: StepShape) -> None:
    batch = shape.micro_batch
    images = Images(_samples(architecture, batch), architecture.conditions(batch))
    gan, on_generated = None, None
    if shape.gan:
        gan = (Images(_samples(architecture, batch), images.condition), _noise(architecture, batch))
        on_generated = _noise(architecture, batch) if shape.classified_apart else None
    losses = fake_score_losses(models, images, FakeScoreDraws(_noise(architecture, batch), gan, on_generated))
    torch.stack(list(losses.values())).sum().backward()


def _samples(architecture: Architecture, batch: int) -> Tensor:
    return torch.empty(batch, *architecture.sample_shape)


def _pairs(architecture: Architecture, shape: StepShape) -> PairBatch:
    batch = shape.micro_batch
    return PairBatch(_samples(architecture, batch), _samples(architecture, batch), architecture.conditions(batch))


def _noise(architecture: Architecture, batch: int) -> Noise:
    return Noise(_samples(architecture, batch), noise_level(batch))
