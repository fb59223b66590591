"""What the networks are conditioned on: class labels, or nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_trainer.denoiser import Condition
from dmd_trainer.keyed import Draws


@dataclass(frozen=True)
class Conditions:
    """Draws and makes the condition of a batch.

    Attributes:
        class_count: how many classes there are; None for an unconditional teacher.
        null_label: the label that stands for "no class", for classifier-free guidance; None where there is none.
    """

    class_count: int | None = None
    null_label: int | None = None

    def draw(self, draws: Draws) -> dict[str, Tensor]:
        """The condition of a batch, each class as likely as another; always the first numbers taken from `draws`."""
        if self.class_count is None:
            return {}
        return {"class_labels": draws.integers(0, self.class_count)}

    @property
    def negative(self) -> Condition | None:
        """The condition that guidance leads away from, [1]; None where the teacher has none."""
        return None if self.null_label is None else {"class_labels": torch.tensor([self.null_label])}


def to_device(condition: Condition, device: torch.device) -> dict[str, Tensor]:
    """The condition on another device."""
    return {key: value.to(device) for key, value in condition.items()}
