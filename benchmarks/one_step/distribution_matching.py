"""DMD, DMD2 with and without its GAN, variational score distillation: the trainer's `Distillation`, differently set."""

from typing import Any, cast

from benchmarks.digits import EXAMPLE
from benchmarks.one_step.setting import FORWARD, UPDATE, Sampler, Setting
from benchmarks.one_step.training import as_in_manifest
from dmd_api.loading import load_manifest
from dmd_api.spec import Gan
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss

TO_THE_HEAD = 0.5
"""What it costs to run a network to its bottleneck, where the GAN's head reads, of running it whole."""


def distribution_matching(
    setting: Setting,
    learning_rate: float,
    fake_score_updates: int = 1,
    share: float = 0.0,
    gan: float | None = None,
) -> Sampler:
    """A one-step generator by distribution matching.

    Args:
        setting: what all methods share.
        learning_rate: of generator and fake score.
        fake_score_updates: k, per generator update.
        share: of the budget for ODE pairs; 0 leaves the regression out.
        gan: the weight of the generator's GAN loss; None leaves the GAN out.
    """
    spec = load_manifest(EXAMPLE).spec
    pairs = setting.pairs(share) if share else None
    each = cost(fake_score_updates, pairs is not None, gan is not None)
    updates = setting.updates(each, pairs.cost if pairs else 0)
    method: dict[str, Any] = {"fake_score_updates": fake_score_updates}
    if gan is not None:
        method["gan"] = Gan(generator_weight=gan)
    if pairs is None:
        method |= {"name": "DMD2", "regression": None}
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
    distillation = Distillation(teacher, spec, data, l2_regression_loss)
    for _ in range(updates):
        distillation.step()
    return distillation.ema_generator


def cost(fake_score_updates: int, with_pairs: bool, with_gan: bool) -> float:
    """Network evaluations of a step, a sample: generator, both scores, fake updates, fresh images for all but one.

    With a GAN, the head also reads each generated image once in the generator's update, and beside a real one in each
    of the fake score's.
    """
    generator = UPDATE * (2 if with_pairs else 1)
    without = generator + 2 * FORWARD + UPDATE * fake_score_updates + FORWARD * (fake_score_updates - 1)
    return without + with_gan * TO_THE_HEAD * UPDATE * (1 + 2 * fake_score_updates)
