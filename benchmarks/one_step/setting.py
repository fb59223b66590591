"""What all methods share: the teacher, the data, the budget, and how a network becomes a one-step generator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.one_step.pairs import TeacherPairs, make_pairs
from benchmarks.one_step.tasks import Task
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.families.teacher import Teacher

FORWARD, UPDATE = 1, 3
"""What a sample costs in network evaluations: a forward pass, and one with its backward pass (counted as two more)."""

Sampler = Callable[[Tensor, Condition], Tensor]
"""(unit-variance noise [B, C, H, W], condition) -> images [B, C, H, W]."""


@dataclass(frozen=True)
class Setting:
    """One run's share of everything.

    Attributes:
        task: the teacher and its data.
        budget: network evaluations that training may cost, the making of ODE pairs included.
        seed: of every draw.
    """

    task: Task
    budget: int
    seed: int

    @property
    def teacher(self) -> Teacher:
        """The task's."""
        return self.task.teacher

    @property
    def batch(self) -> int:
        """The task's."""
        return self.task.batch

    def updates(self, cost: float, spent: int = 0) -> int:
        """How many updates of `cost` network evaluations a sample are left after `spent`."""
        return int((self.budget - spent) // (cost * self.batch))

    def pairs(self, share: float) -> TeacherPairs:
        """As many ODE pairs as `share` of the budget pays for."""
        return make_pairs(self.teacher, round(self.budget * share), self.seed, self.task.classes, self.task.pair_steps)

    def draws(self, stream: int) -> torch.Generator:
        """The random numbers of one purpose."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def real(self, draws: torch.Generator) -> tuple[Tensor, Condition]:
        """A batch of the data and its condition."""
        return self.task.at(torch.randint(len(self.task), (self.batch,), generator=draws))


def normal_like(images: Tensor, draws: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape of `images`."""
    return torch.randn(images.shape, generator=draws)


def one_step(denoiser: Denoiser) -> Sampler:
    """x = D(sigma_max z, sigma_max): all generators here are the teacher's network, called once at the noisiest level.

    It is also one Euler step of the probability-flow ODE from sigma_max to 0.
    """
    schedule = denoiser.schedule

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        sigma = schedule.sigmas[-1:].expand(len(noise))
        return denoiser(noise * float(sigma[0]), schedule.at_sigma(sigma), condition)

    return sample
