"""What the networks are conditioned on: class labels, or nothing; prompts are in `prompts.py`.

A condition is drawn as small numbers, which is what pairs and caches keep, and embedded into the network's arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom

Drawn = Mapping[str, Tensor]
"""A batch's conditions by number: {"class_labels": [B]}, {"prompt": [B]}, or {}."""


@dataclass(frozen=True)
class Conditions:
    """KeyedRandom and makes the condition of a batch.

    Attributes:
        class_count: how many classes there are; None for an unconditional teacher.
        null_label: the label that stands for "no class", for classifier-free guidance; None where there is none.
    """

    class_count: int | None = None
    null_label: int | None = None

    @property
    def identity(self) -> str:
        """What tells these conditions from others, for the keys of caches."""
        return f"classes-{self.class_count}"

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        """The conditions of a batch, each class as likely as another; always the first numbers taken from `random`."""
        if self.class_count is None:
            return {}
        return {"class_labels": random.integers(0, self.class_count)}

    def in_turn(self, count: int) -> dict[str, Tensor]:
        """`count` conditions one after the other, for pictures: class after class, and from the start again."""
        return {} if self.class_count is None else {"class_labels": torch.arange(count) % self.class_count}

    def embed(self, drawn: Drawn, device: torch.device) -> dict[str, Tensor]:
        """The network's arguments [B, ...] for drawn conditions, on `device`."""
        return {key: value.to(device) for key, value in drawn.items()}

    @property
    def negative(self) -> Condition | None:
        """The condition that guidance leads away from, [1, ...]; None where the teacher has none."""
        return None if self.null_label is None else {"class_labels": torch.tensor([self.null_label])}
