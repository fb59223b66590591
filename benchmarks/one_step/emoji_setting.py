"""What the methods share on the emoji: the teacher, its captions and latents, the budget, pairs and DDIM."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from benchmarks.one_step.pairs import TeacherPairs
from benchmarks.one_step.setting import Sampler
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.data.emoji import load_emoji
from dmd_trainer.diffusion.denoiser import Condition, Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule, add_noise, per_sample
from dmd_trainer.diffusion.solvers import guide, teacher_solver
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.fetch import ASSETS
from dmd_trainer.runtime.storage import FileStorage

CPU = torch.device("cpu")
BUDGET = 300_000
"""Network evaluations of each method's training; about ten minutes on two cores."""
BATCH = 32
GUIDANCE = 3.0
SOLVER_STEPS = 50
PAIR_COST = 2 * (SOLVER_STEPS + 1)
"""Network evaluations of an ODE pair: PNDM's first step evaluates twice, and guidance doubles all."""


@dataclass(frozen=True)
class Setting:
    """What the methods share.

    Attributes:
        teacher: frozen.
        conditions: all captions, drawn at random.
        latents: of the glyphs, [N, 4, 8, 8], in the captions' order.
        budget: network evaluations that training may cost, the making of ODE pairs included.
        seed: of every draw.
    """

    teacher: Teacher
    conditions: PromptConditions
    latents: Tensor
    budget: int = BUDGET
    seed: int = 0

    @property
    def guided(self) -> Guided:
        """The teacher as it is distilled: an evaluation of it costs two."""
        return guide(self.teacher.denoiser, GUIDANCE, self.conditions.negative)

    def drawn(self, purpose: str, step: int) -> tuple[KeyedRandom, Tensor, Condition]:
        """A batch for a step of training: its random numbers, its latents [B, 4, 8, 8] and their condition."""
        random = KeyedRandom(self.seed, purpose, step, range(BATCH))
        prompts = self.conditions.draw(random)
        return random, self.latents[prompts["prompt"]], self.conditions.embed(prompts, CPU)

    def draws(self, stream: int) -> torch.Generator:
        """The random numbers of one purpose."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def updates(self, cost: int, spent: int = 0) -> int:
        """How many updates of `cost` network evaluations a sample are left after `spent`."""
        return (self.budget - spent) // (cost * BATCH)


def emoji_setting(budget: int = BUDGET, seed: int = 0) -> Setting:
    """The shipped teacher and its data."""
    teacher = load_teacher(ASSETS / "emoji-teacher")
    images, captions = load_emoji()
    folder = Path(mkdtemp())
    embeddings = PromptEmbeddings(
        captions, teacher.digest, FileStorage(folder), folder / "local", partial(TextEncoder, teacher.directory, CPU)
    )
    with torch.no_grad():
        latents = torch.cat([teacher.autoencoder.encode(part) for part in images.split(128)])
    return Setting(teacher, PromptConditions(embeddings=embeddings), latents, budget, seed)


@dataclass(frozen=True)
class PromptPairs(TeacherPairs):
    """Noise [N, C, H, W], the teacher's solution of it, and the numbers of the prompts [N], called labels."""

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor, Condition]:
        """The pairs at `indices` [B]: (noise, latents, drawn condition)."""
        return self.noise[indices], self.images[indices], {"prompt": self.labels[indices]}


def make_pairs(setting: Setting, evaluations: int) -> PromptPairs:
    """As many of the teacher's ODE pairs as `evaluations` pay for."""
    solver = teacher_solver(setting.teacher.denoiser, "PNDM", SOLVER_STEPS, GUIDANCE, setting.conditions.negative)
    noises, solutions, prompts = [], [], []
    total = evaluations // PAIR_COST
    for start in range(0, total, 128):
        random = KeyedRandom(setting.seed, "pairs", 0, range(start, min(start + 128, total)))
        drawn = setting.conditions.draw(random)
        noise = random.normal(setting.teacher.sample_shape)
        noises.append(noise)
        solutions.append(solver(noise, setting.conditions.embed(drawn, CPU)))
        prompts.append(drawn["prompt"])
    return PromptPairs(torch.cat(noises), torch.cat(solutions), torch.cat(prompts), cost=total * PAIR_COST)


def ddim_levels(schedule: Schedule, steps: int) -> NoiseLevel:
    """The levels between `steps` evenly spread steps ("trailing", arXiv 2305.08891): [steps + 1], the last one clean.

    Those of half as many steps are every second one of them.
    """
    indices = torch.tensor([len(schedule) * (steps - number) // steps - 1 for number in range(steps)])
    level = schedule.at(indices)
    clean, noisy = level.alpha.new_ones(1), level.sigma.new_zeros(1)
    return level.followed_by(NoiseLevel(clean, noisy, noisy))


def level_at(levels: NoiseLevel, index: Tensor) -> NoiseLevel:
    """Those of `levels` at `index` [B]."""
    return NoiseLevel(levels.alpha[index], levels.sigma[index], levels.time[index])


def ddim(setting: Setting, steps: int) -> Sampler:
    """The guided teacher's DDIM from the noisiest level."""
    guided = setting.guided
    levels = ddim_levels(setting.teacher.denoiser.schedule, steps)

    @torch.no_grad()
    def sample(noise: Tensor, condition: Condition) -> Tensor:
        x = noise
        for number in range(steps):
            level, lower = (level_at(levels, torch.full((len(x),), index)) for index in (number, number + 1))
            x = ddim_step(x, guided(x, level, condition), level, lower)
        return x

    return sample


def ddim_step(x: Tensor, x0: Tensor, level: NoiseLevel, following: NoiseLevel) -> Tensor:
    """One step of DDIM from x [B, C, H, W] at `level`, given the prediction x0 (arXiv 2010.02502, eq. 12, eta = 0)."""
    noise = (x - per_sample(level.alpha, x) * x0) / per_sample(level.sigma, x)
    return add_noise(x0, noise, following)


def one_step(denoiser: Denoiser) -> Sampler:
    """x = D(z, T), not guided: one call at the noisiest level, as a generator makes its images."""
    return Generator(denoiser, (len(denoiser.schedule) - 1,))
