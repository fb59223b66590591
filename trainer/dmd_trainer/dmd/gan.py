"""DMD2's GAN term: a classifier of real and generated images on the fake score's bottleneck (arXiv 2405.14867, 4.3)."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dmd_trainer.families.family import Tap

LAST_SIDE = 4
"""Features whose shorter side is at most this are read by one convolution as large as they are."""
MOST_GROUPS, CHANNELS_A_GROUP = 32, 8
"""Of a normalisation. Once a picture is a single value a channel, a group of few channels says nothing: one channel
less its own mean is zero."""


class BottleneckHead(nn.Module):
    """A classifier of a network's innermost features: strided convolutions down to one value (DMD2's own head).

    Args:
        channels: of the features.
        size: their height and width.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        layers: list[nn.Module] = []
        while min(height, width) > LAST_SIDE:
            layers += _normalised(nn.Conv2d(channels, channels, 4, stride=2, padding=1))
            height, width = height // 2, width // 2
        layers += _normalised(nn.Conv2d(channels, channels, (height, width)))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B] of features [B, C, H, W]; greater for what looks real."""
        logits: Tensor = self.layers(features)
        return logits.reshape(len(features))


def _normalised(convolution: nn.Conv2d) -> list[nn.Module]:
    channels = convolution.out_channels
    most = min(MOST_GROUPS, max(1, channels // CHANNELS_A_GROUP))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return [convolution, nn.GroupNorm(groups, channels), nn.SiLU()]


class FakeScore(nn.Module):
    """The fake score's network, and where there is a GAN term, its head.

    The head is called inside `forward`, so that whoever shards or hooks the network sees one module with one call.

    Args:
        network: the teacher's.
        tap: where the head reads its features; None: there is no head.
    """

    def __init__(self, network: Any, tap: Tap | None = None) -> None:
        super().__init__()
        self.network = network
        self.head: BottleneckHead | None = None
        # In a tuple, since it is no part of its own: all its modules are the network's.
        self._encoders: tuple[nn.Module, ...] = ()
        self._features: list[Tensor] | None = None
        if tap is not None:
            parameter = next(network.parameters())
            self.head = BottleneckHead(tap.channels, tap.size).to(parameter.device, parameter.dtype)
            self._encoders = (tap.encoder,)
            tap.bottleneck.register_forward_hook(self._keep)

    def enable_gradient_checkpointing(self) -> None:
        """Computes activations again in the backward pass, of the network and as far as the head reads it."""
        for network in (self.network, *self._encoders):
            network.enable_gradient_checkpointing()

    def forward(
        self, sample: Tensor, *, denoise: bool = True, classify: bool = False, **arguments: Any
    ) -> tuple[Tensor, ...]:
        """The network's output with `denoise`, and with `classify` the head's logits [B].

        For the logits alone the network is run no further than to its bottleneck; for both, once.
        """
        if not classify:
            output: tuple[Tensor] = self.network(sample, **arguments)
            return output
        assert self.head is not None, "preflight asks for a GAN where it classifies"
        if not denoise:
            (encoder,) = self._encoders
            return (self.head(encoder(sample, **arguments)[0]),)
        kept: list[Tensor] = []
        self._features = kept
        (denoised,) = self.network(sample, **arguments)
        self._features = None
        (features,) = kept
        return denoised, self.head(features)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keeps what passes the bottleneck, where the head is to read it too."""
        if self._features is not None:
            self._features.append(output)


def gan_scale(sample_shape: Sequence[int]) -> float:
    """What the GAN's losses are divided by, so that their weights mean the same for images of any size: sqrt(C H W).

    The other losses are means over a sample's C H W values: each value's share of their gradient is 1 / (C H W), and
    the norm of all of it 1 / sqrt(C H W). A discriminator gives one number an image, whose gradient's norm does not
    depend on the size.
    """
    return math.sqrt(math.prod(sample_shape))


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating: mean softplus(-D(fake)) (Goodfellow et al. 2014, arXiv 1406.2661, section 3): a scalar."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(D(fake)) + mean softplus(-D(real)): a scalar; 2 ln 2 where D says nothing."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
