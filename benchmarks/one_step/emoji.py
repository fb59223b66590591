"""The comparison on the emoji teacher, which is latent, reads text and is guided: one seed, three methods.

Each starts from the teacher's weights, sees the same captions and glyphs, and trains for the same number of network
evaluations; a guided evaluation of the teacher is two. Learning rates are the better of two in a short pilot
(`python -m benchmarks.one_step.emoji pilot`), whose FID with 60,000 network evaluations and another seed was

                                3e-4     1e-3
    DMD                        3.244    2.878
    DMD2 without GAN (k = 5)   5.957    6.758
    Consistency distillation   3.420    4.028
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.one_step.pairs import TeacherPairs
from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler
from benchmarks.one_step.training import as_in_manifest, follow, train
from dmd_api.loading import load_manifest
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.data.emoji import load_emoji
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample
from dmd_trainer.diffusion.solvers import guide, teacher_solver
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.evaluation.clip_score import ClipScore
from dmd_trainer.evaluation.features import ClipFeatures
from dmd_trainer.evaluation.measure import Samples, measure, score
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.fetch import ASSETS
from dmd_trainer.runtime.storage import FileStorage

EXAMPLE = Path(__file__).parents[2] / "examples" / "distill-emoji.yaml"
CPU = torch.device("cpu")
BUDGET = 300_000
"""Network evaluations of each method's training; about ten minutes on two cores."""
BATCH = 32
GUIDANCE = 3.0
SOLVER_STEPS = 50
PAIR_COST = 2 * (SOLVER_STEPS + 1)
"""Network evaluations of an ODE pair: PNDM's first step evaluates twice, and guidance doubles all."""
PAIRS_SHARE = 0.3
"""Of the budget, for DMD's pairs."""
SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""Of the consistency function's boundary (arXiv 2310.04378, section 4.1; the scale is that of the authors' code)."""
SKIP = 20
"""Training timesteps between the ends of a solver's step (arXiv 2310.04378, section 4.3)."""
TARGET_DECAY = 0.95
COST = UPDATE + 2 * FORWARD + FORWARD
"""Consistency distillation: the student's update, a guided evaluation of the teacher, and the target's."""
KEYS = {"FID": "fid", "Precision": "precision", "Recall": "recall", "CLIPScore": "clipScore"}
TEACHER_STEPS = (1, 2, 4, 8, 18, 50)


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


def distribution_matching(
    setting: Setting, learning_rate: float, fake_score_updates: int = 1, weight: float | None = None
) -> Sampler:
    """DMD with a regression of this weight, or DMD2 without its GAN: the trainer's own `Distillation`."""
    spec = load_manifest(EXAMPLE).spec
    pairs = None if weight is None else make_pairs(setting, round(PAIRS_SHARE * setting.budget))
    # Generator, guided real score, fake score, its updates, fresh images for all but one.
    cost = UPDATE * (1 if pairs is None else 2) + 3 * FORWARD
    cost += UPDATE * fake_score_updates + FORWARD * (fake_score_updates - 1)
    updates = setting.updates(cost, 0 if pairs is None else PAIR_COST * len(pairs))
    method: dict[str, Any] = {"fake_score_updates": fake_score_updates}
    if pairs is None or spec.method.regression is None:
        method |= {"name": "DMD2", "regression": None}
    else:
        method["regression"] = spec.method.regression.model_copy(update={"weight": weight})
    training = as_in_manifest(updates, BATCH, learning_rate, setting.seed)
    spec = spec.model_copy(
        update={
            "method": spec.method.model_copy(update=method),
            "training": spec.training.model_copy(update=training),
        }
    )
    # Held in memory, the pairs are read as the trainer reads its own from files.
    read = cast("Pairs | None", pairs)
    distillation = Distillation(setting.teacher, spec, TrainingData(setting.conditions, read), l2_regression_loss)
    for _ in range(updates):
        distillation.step()
    return distillation.ema_generator


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
    return PromptPairs(torch.cat(noises), torch.cat(solutions), torch.cat(prompts))


def consistency_function(denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """f(x, t) = c_skip x + c_out x0(x, t), x itself at t = 0 (Luo et al. 2023, arXiv 2310.04378, eq. 9).

    c_skip = s^2 / ((k t)^2 + s^2), c_out = k t / sqrt((k t)^2 + s^2), s = 0.5, k = 10.
    """
    scaled = TIME_SCALE * level.time
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return per_sample(skip, x) * x + per_sample(out, x) * denoiser(x, level, condition)


def ddim(setting: Setting, steps: int) -> Sampler:
    """The guided teacher's DDIM from the noisiest level, its steps evenly spread ("trailing", arXiv 2305.08891)."""
    guided = guide(setting.teacher.denoiser, GUIDANCE, setting.conditions.negative)
    schedule = setting.teacher.denoiser.schedule
    indices = [len(schedule) * (steps - number) // steps - 1 for number in range(steps)] + [0]

    @torch.no_grad()
    def sample(noise: Tensor, condition: Condition) -> Tensor:
        x = noise
        for index, following in pairwise(indices):
            level, lower = (schedule.at(torch.full((len(x),), i)) for i in (index, following))
            x0 = guided(x, level, condition)
            x = ddim_step(x, x0, level, lower) if following else x0
        return x

    return sample


def ddim_step(x: Tensor, x0: Tensor, level: NoiseLevel, following: NoiseLevel) -> Tensor:
    """One step of DDIM from x [B, C, H, W] at `level`, given the prediction x0 (arXiv 2010.02502, eq. 12, eta = 0)."""
    noise = (x - per_sample(level.alpha, x) * x0) / per_sample(level.sigma, x)
    return add_noise(x0, noise, following)


def consistency(setting: Setting, learning_rate: float) -> Sampler:
    """Latent consistency distillation (arXiv 2310.04378, algorithm 1), at one guidance scale and with L2."""
    teacher, schedule = setting.teacher.denoiser, setting.teacher.denoiser.schedule
    guided = guide(setting.teacher.denoiser, GUIDANCE, setting.conditions.negative)
    target = teacher.with_network(copy.deepcopy(teacher.network))
    last, step = len(schedule) - 1, count()

    def loss(student: Denoiser) -> Tensor:
        follow(target.network, student.network, TARGET_DECAY)
        random = KeyedRandom(setting.seed, "consistency", next(step), range(BATCH))
        drawn = setting.conditions.draw(random)
        condition = setting.conditions.embed(drawn, CPU)
        # 19, 39, ... 999: the solver's steps end where other steps begin, and the last at 0.
        index = SKIP * random.integers(1, len(schedule) // SKIP + 1) - 1
        level, following = schedule.at(index), schedule.at((index - SKIP).clamp_min(0))
        x = add_noise(setting.latents[drawn["prompt"]], random.normal(setting.teacher.sample_shape), level)
        with torch.no_grad():
            stepped = ddim_step(x, guided(x, level, condition), level, following)
            goal = consistency_function(target, stepped, following, condition)
        return F.mse_loss(consistency_function(student, x, level, condition), goal)

    average = train(teacher, loss, setting.updates(COST), learning_rate)

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        return consistency_function(average, noise, schedule.at(torch.full((len(noise),), last)), condition)

    return sample


Method = Callable[[Setting, float], Sampler]
METHODS: dict[str, tuple[Method, float]] = {
    "DMD": (partial(distribution_matching, fake_score_updates=2, weight=5.0), 1e-3),
    "DMD2 without GAN (k = 5)": (partial(distribution_matching, fake_score_updates=5), 3e-4),
    "Consistency distillation": (consistency, 3e-4),
}
PILOT_BUDGET, PILOT_RATES = 60_000, (3e-4, 1e-3)
OTHER_RATES = (1e-4, 1e-3)
"""Of consistency distillation at the whole budget, on either side of the pilot's choice."""


@torch.no_grad()
def measure_sampler(setting: Setting, sampler: Sampler, seed: int) -> dict[str, float]:
    """FID and the rest in emoji-clip's features, a picture for each caption; how often the nearest glyph is its own."""
    images, captions = load_emoji()
    extractor = ClipFeatures(ASSETS / "emoji-clip", "emoji-clip")
    real = torch.cat([extractor.extract(part)[0].float() for part in images.split(256)])
    samples = Samples(
        count=len(captions),
        seed=seed,
        batch_size=256,
        shape=setting.teacher.sample_shape,
        conditions=PromptConditions(embeddings=setting.conditions.embeddings, one_by_one=True),
        device=CPU,
        autoencoder=setting.teacher.autoencoder,
        clip=ClipScore(ASSETS / "emoji-clip", prefix=""),
    )
    measured = measure(sampler, extractor, samples)
    found = score(measured, real, {"CLIPScore", "Precision", "Recall"})
    similarity = F.normalize(measured.features, dim=1) @ F.normalize(real, dim=1).T
    right = similarity.argmax(1) == torch.arange(len(captions))
    return {KEYS[name]: value for name, value in found.items()} | {"retrieval": float(right.double().mean())}


def run() -> dict[str, Any]:
    """Trains and measures, and prints the table."""
    setting = emoji_setting()
    samplers: dict[str, dict[int, Callable[[], Sampler]]] = {
        name: {1: partial(method, setting, rate)} for name, (method, rate) in METHODS.items()
    }
    last = len(setting.teacher.denoiser.schedule) - 1
    samplers["Not distilled"] = {1: lambda: Generator(setting.teacher.denoiser, (last,))}
    samplers["Teacher, DDIM"] = {2 * steps: partial(ddim, setting, steps) for steps in TEACHER_STEPS}
    found: dict[str, list[dict[str, float]]] = {}
    print(f"{'':30} NFE      FID  precision  recall  CLIP score  retrieval")
    for name, of in samplers.items():
        for evaluations, make in of.items():
            started = time.process_time()
            sampler = make()
            seconds = time.process_time() - started
            row = {"evaluations": evaluations, **measure_sampler(setting, sampler, setting.seed), "seconds": seconds}
            found.setdefault(name, []).append(row)
            line = f"{name:30}{row['evaluations']:>4} {row['fid']:8.3f}  {row['precision']:9.3f}  {row['recall']:6.3f} "
            print(line + f" {row['clipScore']:10.2f}  {row['retrieval']:8.1%}", flush=True)
    rates = {name: rate for name, (_, rate) in METHODS.items()}
    return {"budget": BUDGET, "samples": len(setting.latents), "learningRates": rates, "methods": found}


def pilot() -> None:
    """Prints each method's FID with each learning rate, on a seed that the comparison does not use."""
    setting = emoji_setting(PILOT_BUDGET, seed=100)
    for name, (method, _) in METHODS.items():
        for rate in PILOT_RATES:
            found = measure_sampler(setting, method(setting, rate), setting.seed)
            print(name, rate, json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)


def rates() -> None:
    """Prints consistency distillation's figures with other learning rates, at the whole budget: see comparison.md."""
    setting = emoji_setting()
    for rate in OTHER_RATES:
        print(rate, json.dumps(measure_sampler(setting, consistency(setting, rate), setting.seed)), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pilot"]:
            pilot()
        case ["rates"]:
            rates()
        case _:
            print(json.dumps(run(), indent=1))
