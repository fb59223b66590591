"""Class labels as conditions, and no condition at all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom


@dataclass(frozen=True)
class Unconditional(Conditions):
    """No condition."""

    @property
    def identity(self) -> str:
        return "classes-None"

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        return {}

    def in_turn(self, count: int) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class ClassLabels(Conditions):
    """Class labels, each as likely as another.

    Attributes:
        count: how many classes there are.
        null_label: the label that stands for "no class", for classifier-free guidance; None where there is none.
    """

    count: int
    null_label: int | None = None

    @property
    def identity(self) -> str:
        return f"classes-{self.count}"

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        return {"class_labels": random.integers(0, self.count)}

    def in_turn(self, count: int) -> dict[str, Tensor]:
        """Class after class, and from the start again."""
        return {"class_labels": torch.arange(count) % self.count}

    @property
    def negative(self) -> Condition | None:
        return None if self.null_label is None else {"class_labels": torch.tensor([self.null_label])}
