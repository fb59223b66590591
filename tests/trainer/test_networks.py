"""A trained network's state, taken up by one that lies in memory in another way."""

import copy

import torch
from torch import nn

from dmd_api.spec import Training
from dmd_trainer.dmd.networks import TrainedNetwork


def network(*, channels_last: bool) -> TrainedNetwork:
    torch.manual_seed(0)
    module = nn.Conv2d(4, 8, 3)
    training = Training(generatorUpdates=10, batchSize=2, learningRate=1e-2, channelsLast=channels_last)
    return TrainedNetwork("network", module, training, 1e-2, (0.9, 0.999))


def update(trained: TrainedNetwork, step: int) -> None:
    trained.zero_grad()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
    loss = trained.module(x).square().mean()
    loss.backward()
    trained.update(1.0, {"loss": loss.detach()}, step)


def test_moments_follow_the_memory_format_of_their_weights() -> None:
    plain, resumed = network(channels_last=False), network(channels_last=True)
    for step in range(2):
        update(plain, step)
    resumed.load_state(copy.deepcopy(plain.state()))
    for step in range(2, 4):
        update(plain, step)
        update(resumed, step)
    for ours, theirs in zip(resumed.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
