"""DMD2's GAN term: a classifier of real and generated images on the fake score's bottleneck (arXiv 2405.14867, 4.3)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dmd_trainer.families.family import Tap


class BottleneckHead(nn.Module):
    """A small classifier of a UNet's innermost features.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B] of features [B, C, H, W]; greater for what looks real."""
        return self.layers(features)[:, 0]


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
        self._bottleneck: Tensor | None = None
        if tap is not None:
            parameter = next(network.parameters())
            self.head = BottleneckHead(tap.channels).to(parameter.device, parameter.dtype)
            tap.module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self._bottleneck = output

    def forward(self, sample: Tensor, *, classify: bool = False, **arguments: Any) -> tuple[Tensor]:
        """The network's output, or with `classify` the head's logits [B]."""
        output: tuple[Tensor] = self.network(sample, **arguments)
        bottleneck, self._bottleneck = self._bottleneck, None
        if not classify:
            return output
        assert self.head is not None, "preflight asks for a GAN where it classifies"
        assert bottleneck is not None
        return (self.head(bottleneck),)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating: mean softplus(-D(fake)) (Goodfellow et al. 2014, arXiv 1406.2661, section 3): a scalar."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(D(fake)) + mean softplus(-D(real)): a scalar."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
