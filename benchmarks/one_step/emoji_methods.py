"""The methods on the emoji's latents, where levels are a variance-preserving schedule's and the teacher is guided.

Learning rates are the best in a pilot (`python -m benchmarks.one_step.emoji pilot`), whose FID with 60,000 network
evaluations and another seed was

                                 1e-4     3e-4     1e-3
    DMD                                  3.244    2.878
    DMD2 without GAN (k = 5)             5.957    6.758
    Regression alone            2.866    2.622    2.796
    Consistency distillation             3.420    4.028
    Progressive distillation    2.967    2.559    2.834
    Rectified flow (2-reflow)   3.459    3.480    4.820
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.one_step.emoji_setting import (
    BATCH,
    CPU,
    Setting,
    ddim_levels,
    ddim_step,
    level_at,
    make_pairs,
    one_step,
)
from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler
from benchmarks.one_step.training import as_in_manifest, follow, train
from dmd_api.loading import load_manifest
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.diffusion.denoiser import Condition, Denoiser, X0Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss

EXAMPLE = Path(__file__).parents[2] / "examples" / "distill-emoji.yaml"
PAIRS_SHARE = 0.3
"""Of the budget, for DMD's pairs."""
SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""Of the consistency function's boundary (arXiv 2310.04378, section 4.1; the scale is that of the authors' code)."""
SKIP = 20
"""Training timesteps between the ends of a solver's step (arXiv 2310.04378, section 4.3)."""
TARGET_DECAY = 0.95
CONSISTENCY_COST = UPDATE + 2 * FORWARD + FORWARD
"""The student's update, a guided evaluation of the teacher, and the target's."""
PHASES = ((16, 1), (8, 1), (4, 1), (2, 2), (1, 2))
"""Progressive distillation's: the student's steps, and each phase's part of the budget, as on the other tasks."""


def distribution_matching(
    setting: Setting, learning_rate: float, fake_score_updates: int = 1, weight: float | None = None
) -> Sampler:
    """DMD with a regression of this weight, or DMD2 without its GAN: the trainer's own `Distillation`."""
    spec = load_manifest(EXAMPLE).spec
    pairs = None if weight is None else make_pairs(setting, round(PAIRS_SHARE * setting.budget))
    # Generator, guided real score, fake score, its updates, fresh images for all but one.
    cost = UPDATE * (1 if pairs is None else 2) + 3 * FORWARD
    cost += UPDATE * fake_score_updates + FORWARD * (fake_score_updates - 1)
    updates = setting.updates(cost, 0 if pairs is None else pairs.cost)
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


def regression(setting: Setting, learning_rate: float, share: float = 0.5) -> Sampler:
    """The L2 distance to ODE pairs, which take `share` of the budget (arXiv 2101.02388, section 3)."""
    pairs, draws = make_pairs(setting, round(share * setting.budget)), setting.draws(1)

    def loss(student: Denoiser) -> Tensor:
        noise, latents, prompts = pairs.draw(BATCH, draws)
        return l2_regression_loss(one_step(student)(noise, setting.conditions.embed(prompts, CPU)), latents)

    updates = setting.updates(UPDATE, pairs.cost)
    return one_step(train(setting.teacher.denoiser, loss, updates, learning_rate))


def consistency_function(denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """f(x, t) = c_skip x + c_out x0(x, t), x itself at t = 0 (Luo et al. 2023, arXiv 2310.04378, eq. 9).

    c_skip = s^2 / ((k t)^2 + s^2), c_out = k t / sqrt((k t)^2 + s^2), s = 0.5, k = 10.
    """
    scaled = TIME_SCALE * level.time
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return per_sample(skip, x) * x + per_sample(out, x) * denoiser(x, level, condition)


def consistency(setting: Setting, learning_rate: float) -> Sampler:
    """Latent consistency distillation (arXiv 2310.04378, algorithm 1), at one guidance scale and with L2."""
    teacher, guided, schedule = setting.teacher.denoiser, setting.guided, setting.teacher.denoiser.schedule
    target = teacher.with_network(copy.deepcopy(teacher.network))
    last, step = len(schedule) - 1, count()

    def loss(student: Denoiser) -> Tensor:
        follow(target.network, student.network, TARGET_DECAY)
        random, latents, condition = setting.drawn("consistency", next(step))
        # 19, 39, ... 999: the solver's steps end where other steps begin, and the last at 0.
        index = SKIP * random.integers(1, len(schedule) // SKIP + 1) - 1
        level, following = schedule.at(index), schedule.at((index - SKIP).clamp_min(0))
        x = add_noise(latents, random.normal(setting.teacher.sample_shape), level)
        with torch.no_grad():
            stepped = ddim_step(x, guided(x, level, condition), level, following)
            goal = consistency_function(target, stepped, following, condition)
        return F.mse_loss(consistency_function(student, x, level, condition), goal)

    average = train(teacher, loss, setting.updates(CONSISTENCY_COST), learning_rate)

    def sample(noise: Tensor, condition: Condition) -> Tensor:
        return consistency_function(average, noise, schedule.at(torch.full((len(noise),), last)), condition)

    return sample


@torch.no_grad()
def two_steps_target(
    teacher: X0Prediction, x: Tensor, level: NoiseLevel, middle: NoiseLevel, following: NoiseLevel, condition: Condition
) -> Tensor:
    """The x_0 with which one DDIM step to `following` arrives where the teacher's two do (arXiv 2202.00512, app. G)."""
    halfway = ddim_step(x, teacher(x, level, condition), level, middle)
    arrived = ddim_step(halfway, teacher(halfway, middle, condition), middle, following)
    ratio = following.sigma / level.sigma
    return (arrived - per_sample(ratio, x) * x) / per_sample(following.alpha - ratio * level.alpha, x)


def progressive(setting: Setting, learning_rate: float) -> Sampler:
    """Progressive distillation of DDIM's steps, from a guided teacher (arXiv 2202.00512; 2210.03142, at one scale).

    The first phase's teacher is guided and costs twice as much; its student has the guidance in its weights.
    """
    student, step = setting.teacher.denoiser, count()
    teacher: X0Prediction = setting.guided
    parts = sum(part for _, part in PHASES)
    for steps, part in PHASES:
        levels = ddim_levels(student.schedule, 2 * steps)

        def loss(
            student: Denoiser, teacher: X0Prediction = teacher, levels: NoiseLevel = levels, steps: int = steps
        ) -> Tensor:
            random, latents, condition = setting.drawn("progressive", next(step))
            index = 2 * random.integers(0, steps)
            level, middle, following = (level_at(levels, index + further) for further in range(3))
            x = add_noise(latents, random.normal(setting.teacher.sample_shape), level)
            target = two_steps_target(teacher, x, level, middle, following, condition)
            # Truncated SNR (section 4): a mistake in the image counts as much as itself at least.
            weight = (level.alpha / level.sigma).square().clamp_min(1)
            return (per_sample(weight, x) * (student(x, level, condition) - target).square()).mean()

        cost = UPDATE + 2 * (FORWARD if isinstance(teacher, Denoiser) else 2 * FORWARD)
        student = train(student, loss, setting.updates(cost) * part // parts, learning_rate)
        teacher = student
    return one_step(student)


def reflow(setting: Setting, learning_rate: float, share: float = 0.5) -> Sampler:
    """Rectified flow (arXiv 2209.03003), once more straightened on ODE pairs, which take `share` of the budget.

    x_s = (1 - s) x_1 + s z is x_t / (alpha + sigma) at s = sigma / (alpha + sigma), so that the teacher's network
    carries the flow, and the loss |x_1 - z - v|^2 is that of the prediction of x_1 over s^2.
    """
    pairs, draws = make_pairs(setting, round(share * setting.budget)), setting.draws(4)
    schedule = setting.teacher.denoiser.schedule
    shares = schedule.sigmas / (schedule.alphas + schedule.sigmas)

    def loss(student: Denoiser) -> Tensor:
        noise, latents, prompts = pairs.draw(BATCH, draws)
        drawn = torch.rand(BATCH, generator=draws, dtype=torch.float64)
        # The network knows the schedule's own levels; the noisiest one stands for all beyond it.
        index = torch.searchsorted(shares, drawn).clamp_max(len(schedule) - 1)
        level = schedule.at(index)
        predicted = student(add_noise(latents, noise, level), level, setting.conditions.embed(prompts, CPU))
        return ((predicted - latents) / per_sample(shares[index], latents)).square().mean()

    updates = setting.updates(UPDATE, pairs.cost)
    return one_step(train(setting.teacher.denoiser, loss, updates, learning_rate))


Method = Callable[[Setting, float], Sampler]
METHODS: dict[str, tuple[Method, float]] = {
    "DMD": (partial(distribution_matching, fake_score_updates=2, weight=5.0), 1e-3),
    "DMD2 without GAN (k = 5)": (partial(distribution_matching, fake_score_updates=5), 3e-4),
    "Regression alone": (regression, 3e-4),
    "Consistency distillation": (consistency, 3e-4),
    "Progressive distillation": (progressive, 3e-4),
    "Rectified flow (2-reflow)": (reflow, 1e-4),
}
