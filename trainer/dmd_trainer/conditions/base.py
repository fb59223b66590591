"""Conditions: what a teacher's network is given besides noisy samples.

A condition is drawn as small numbers, which pairs and caches keep, and embedded into the network's arguments.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom

Drawn = Mapping[str, Tensor]
"""A batch's conditions by number: {"class_labels": [B]}, {"prompt": [B]}, or {}."""


class Conditions(ABC):
    """Draws the conditions of a batch, and embeds them."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A name that tells these conditions from others, for the keys of caches."""

    @abstractmethod
    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        """The conditions of a batch, each as likely as another; always the first numbers taken from `random`."""

    @abstractmethod
    def in_turn(self, count: int) -> dict[str, Tensor]:
        """`count` conditions one after the other, for pictures."""

    def embed(self, drawn: Drawn, device: torch.device) -> dict[str, Tensor]:
        """The network's arguments [B, ...] for drawn conditions, on `device`."""
        return {key: value.to(device) for key, value in drawn.items()}

    @property
    def negative(self) -> Condition | None:
        """The condition that guidance leads away from, [1, ...]; None where the teacher has none."""
        return None
