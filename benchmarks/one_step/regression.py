"""Regression alone: the generator learns the teacher's solutions of noises (arXiv 2101.02388, section 3)."""

from torch import Tensor

from benchmarks.one_step.setting import UPDATE, Sampler, Setting, one_step
from benchmarks.one_step.training import train
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.dmd.losses import l2_regression_loss


def regression(setting: Setting, learning_rate: float, share: float = 0.5) -> Sampler:
    """A one-step generator by the L2 distance to ODE pairs, which take `share` of the budget."""
    return one_step(regressed(setting, learning_rate, share))


def regressed(setting: Setting, learning_rate: float, share: float) -> Denoiser:
    """As `regression`, before it becomes a sampler."""
    pairs, draws = setting.pairs(share), setting.draws(1)

    def loss(student: Denoiser) -> Tensor:
        noise, images, condition = pairs.draw(setting.batch, draws)
        return l2_regression_loss(one_step(student)(noise, condition), images)

    updates = setting.updates(UPDATE, spent=pairs.cost)
    return train(setting.teacher.denoiser, loss, updates, learning_rate)
