"""The teacher's ODE pairs, held in memory; as many as a number of network evaluations pays for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.solvers import heun
from dmd_trainer.families.teacher import Teacher

CHUNK = 64


@dataclass(frozen=True)
class TeacherPairs:
    """Noise [N, C, H, W], the teacher's solution of it, and the classes [N]; read as the trainer's `Pairs` are.

    `cost` is the network evaluations that they took.
    """

    noise: Tensor
    images: Tensor
    labels: Tensor
    cost: int

    def __len__(self) -> int:
        return len(self.noise)

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor, Condition]:
        """The pairs at `indices` [B]: (noise, images, condition)."""
        return self.noise[indices], self.images[indices], {"class_labels": self.labels[indices]}

    def draw(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Condition]:
        """`count` of them, each as likely as another."""
        return self.at(torch.randint(len(self), (count,), generator=draws))


_made: dict[tuple[str, int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}


def pair_cost(steps: int) -> int:
    """Network evaluations of a pair: Heun's method evaluates twice a step but for the last one."""
    return 2 * steps - 1


def make_pairs(teacher: Teacher, evaluations: int, seed: int, classes: int, steps: int) -> TeacherPairs:
    """The first pairs of `seed` that `evaluations` pay for, each by `steps` steps of Heun's method.

    Chunks are kept, since methods share them; whoever uses them is charged for all the same.
    """
    count = max(1, evaluations // pair_cost(steps))
    chunks = _made.setdefault((teacher.digest, seed, steps), [])
    while len(chunks) * CHUNK < count:
        start = len(chunks) * CHUNK
        random = KeyedRandom(seed, "pairs", 0, range(start, start + CHUNK))
        labels, noise = random.integers(0, classes), random.normal(teacher.sample_shape)
        images = heun(teacher.denoiser, teacher.denoiser.schedule, noise, {"class_labels": labels}, steps)
        chunks.append((noise, images, labels))
    noise, images, labels = (torch.cat(column)[:count] for column in zip(*chunks, strict=True))
    return TeacherPairs(noise, images, labels, cost=count * pair_cost(steps))
