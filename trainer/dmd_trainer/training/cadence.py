"""The cadence of a training: steps at which evaluations, samples, checkpoints and points of the curves are due."""

from dataclasses import dataclass
from typing import Self

from dmd_api.spec import Spec

LOG_EVERY = 10
"""Generator updates between two points of the curves of losses and health."""


@dataclass(frozen=True)
class Cadence:
    """Says what is due at a step, counted in generator updates; at the last one everything but logging is.

    Attributes:
        total: the last step.
        evaluate_every: `evaluation.every`.
        sample_every: `training.sampleEvery`.
        checkpoint_every: `training.checkpointEvery`.
    """

    total: int
    evaluate_every: int
    sample_every: int
    checkpoint_every: int

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """The manifest's."""
        training = spec.training
        return cls(training.generator_updates, spec.evaluation.every, training.sample_every, training.checkpoint_every)

    def finished(self, step: int) -> bool:
        """Returns whether no step follows."""
        return step == self.total

    def evaluates(self, step: int) -> bool:
        """Returns whether the averaged generator is evaluated."""
        return self.finished(step) or step % self.evaluate_every == 0

    def samples(self, step: int) -> bool:
        """Returns whether the averaged generator's images are drawn and kept."""
        return self.finished(step) or step % self.sample_every == 0

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is written."""
        return self.finished(step) or step % self.checkpoint_every == 0

    def logs(self, step: int) -> bool:
        """Returns whether the curves get a point, and health is measured."""
        return step % LOG_EVERY == 0
