"""The digits: 1,797 images of 8x8 pixels that ship with scikit-learn, and a small classifier of them.

They are the data of the shipped example, small enough that the whole distillation runs on a laptop's CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def load_digits_images() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] in [-1, 1], float32, and their labels [1797], int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # 17 grey levels, 0 to 16
    return images, torch.from_numpy(digits.target).long()


class DigitsClassifier(nn.Module):
    """A small convolutional classifier, whose 64 penultimate features stand in for Inception for digits."""

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4, 64)
        self.head = nn.Linear(64, CLASSES)
        self.dropout = nn.Dropout(0.25)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 64] of images [B, 1, 8, 8] in [-1, 1]."""
        x = F.silu(self.conv1(images))
        x = F.max_pool2d(F.silu(self.conv2(x)), 2)
        x = F.max_pool2d(F.silu(self.conv3(x)), 2)
        return F.silu(self.hidden(self.dropout(x.flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, 8, 8] in [-1, 1]."""
        return self.head(self.dropout(self.features(images)))
