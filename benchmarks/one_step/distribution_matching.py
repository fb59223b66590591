"""DMD, DMD2 with and without its GAN, variational score distillation: the trainer's `Distillation`, differently set."""

from dataclasses import replace
from functools import cache
from typing import Any, cast

from torch import Tensor

from benchmarks.digits import EXAMPLE
from benchmarks.one_step.regression import regressed
from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler, Setting
from benchmarks.one_step.training import as_in_manifest
from dmd_api.loading import load_manifest
from dmd_api.spec import Gan, NoiseRange
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.initial_weights import TEACHERS, InitialWeights
from dmd_trainer.dmd.losses import l2_regression_loss

FIRST_RATE = 1e-3
"""The learning rate of a regression that comes first."""
TO_THE_HEAD = 0.5
"""What it costs to run a network to its bottleneck, where the GAN's head reads, of running it whole."""


def distribution_matching(
    setting: Setting,
    learning_rate: float,
    fake_score_updates: int = 1,
    share: float = 0.0,
    weight: float | None = None,
    gan: float | None = None,
    first: float = 0.0,
    noise: tuple[int, int] | None = None,
) -> Sampler:
    """A one-step generator by distribution matching.

    Args:
        setting: what all methods share.
        learning_rate: of generator and fake score.
        fake_score_updates: k, per generator update.
        share: of the budget for ODE pairs; 0 leaves the regression out.
        weight: of the regression. Default: the digits example's.
        gan: the weight of the generator's GAN loss; None leaves the GAN out.
        first: share of the budget for a regression that the generator starts from, half of it for its pairs, which are
            then the ones of `share` as well.
        noise: the levels that distributions are matched at, from and to; None for the trainer's own.
    """
    spec = load_manifest(EXAMPLE).spec
    initial, spent = TEACHERS, 0
    if first:
        before = replace(setting, budget=round(first * setting.budget))
        initial, spent = InitialWeights(generator=first_regression(before)), before.budget
        share = first / 2 if share else 0.0
    pairs = setting.pairs(share) if share else None
    each = cost(fake_score_updates, pairs is not None, gan is not None)
    updates = setting.updates(each, spent or (pairs.cost if pairs else 0))
    method: dict[str, Any] = {"fake_score_updates": fake_score_updates}
    if noise is not None:
        method["matching_noise"] = NoiseRange(min_timestep=noise[0], max_timestep=noise[1])
    if gan is not None:
        method["gan"] = Gan(generator_weight=gan)
    if pairs is None or spec.method.regression is None:
        method |= {"name": "DMD2", "regression": None}
    elif weight is not None:
        method["regression"] = spec.method.regression.model_copy(update={"weight": weight})
    training = as_in_manifest(updates, setting.batch, learning_rate, setting.seed)
    spec = spec.model_copy(
        update={
            "method": spec.method.model_copy(update=method),
            "training": spec.training.model_copy(update=training),
        }
    )
    teacher = setting.teacher
    # Held in memory, the pairs are read as the trainer reads its own from files.
    read = cast("Pairs | None", pairs)
    real = None if gan is None else setting.task
    data = TrainingData(teacher.conditions(setting.task.classes), read, real)
    distillation = Distillation(teacher, spec, data, l2_regression_loss, initial=initial)
    for _ in range(updates):
        distillation.step()
    return distillation.ema_generator


@cache
def first_regression(setting: Setting) -> dict[str, Tensor]:
    """The weights after a regression; kept, since methods share it, and charged to each."""
    return dict(regressed(setting, FIRST_RATE, 0.5).network.state_dict())


def cost(fake_score_updates: int, with_pairs: bool, with_gan: bool) -> float:
    """Network evaluations of a step, a sample: generator, both scores, fake updates, fresh images for all but one.

    With a GAN, the head also reads each generated image once in the generator's update, and a real one in each of the
    fake score's, where generated images are classified as they are denoised.
    """
    generator = UPDATE * (2 if with_pairs else 1)
    without = generator + 2 * FORWARD + UPDATE * fake_score_updates + FORWARD * (fake_score_updates - 1)
    return without + with_gan * TO_THE_HEAD * UPDATE * (1 + fake_score_updates)
