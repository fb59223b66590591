"""The methods by task and name.

Learning rates are the best of three in each method's pilot (`python -m benchmarks.one_step.pilot`), the lower one where
two tied. On digits, of 3e-4, 1e-3 and 3e-3; variational score distillation diverged with all three, and of 3e-5 and
1e-4 it got the better. FID in that pilot (5,000 samples, 100,000 network evaluations, one seed that the comparison does
not use):

                                            3e-5     1e-4     3e-4     1e-3     3e-3
    DMD                                                      0.478    0.326    0.433
    DMD2 without GAN (k = 5)                                 4.150    0.936    0.935
    Variational score distillation (k = 1)  7.916    5.817  36.000  117.403  117.037
    Regression alone                                         0.309    0.281    0.292
    Consistency distillation                                 2.267    2.357    2.143
    Progressive distillation                                 0.713    0.634    0.775
    Rectified flow (2-reflow)                                1.020    0.617    0.516

On glyphs the pilot is at the budget that is reported, and its runs are stored beside the comparison's; its figures are
in docs/comparison.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.one_step.consistency import consistency
from benchmarks.one_step.distribution_matching import distribution_matching
from benchmarks.one_step.progressive import progressive
from benchmarks.one_step.reflow import reflow
from benchmarks.one_step.regression import regression
from benchmarks.one_step.setting import Sampler, Setting


@dataclass(frozen=True)
class Method:
    """A way to a one-step generator.

    Attributes:
        train: (setting, learning rate, settings) -> the generator.
        learning_rate: that it is compared with.
        settings: what else is given to `train`.
        tried: the rates of its pilot.
    """

    train: Callable[..., Sampler]
    learning_rate: float
    settings: dict[str, Any] = field(default_factory=dict)
    tried: tuple[float, ...] = (3e-4, 1e-3, 3e-3)

    def distil(self, setting: Setting, learning_rate: float) -> Sampler:
        """The one-step generator."""
        return self.train(setting, learning_rate, **self.settings)


LOWER = (2e-4, 5e-4, 1e-3)
"""Distribution matching's rates on glyphs, where both networks learn with the same."""
LOWEST = (1e-4, *LOWER)
"""Of those that were best with the lowest of three; a lower one is no better."""
PICTURE = (165, 520)
"""Indices of the glyphs' teacher's sigmas 0.05 to 3, where a picture is neither whole nor gone."""
WIDER = (100, 580)
"""Of the sigmas 0.02 to 5, where there are no pairs to hold what is seen at the noisiest levels."""

METHODS = {
    "digits": {
        # The example spends the same share on its pairs: 8,192 pairs beside 1,500 steps.
        "DMD": Method(distribution_matching, 1e-3, {"share": 0.21}),
        "DMD2 without GAN (k = 5)": Method(distribution_matching, 1e-3, {"fake_score_updates": 5}),
        "Variational score distillation (k = 1)": Method(
            distribution_matching, 1e-4, tried=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
        ),
        "Regression alone": Method(regression, 1e-3),
        "Consistency distillation": Method(consistency, 3e-3),
        "Progressive distillation": Method(progressive, 1e-3),
        "Rectified flow (2-reflow)": Method(reflow, 3e-3),
    },
    "glyphs": {
        "Regression alone": Method(regression, 1e-3),
        # Half of the budget goes to the regression that they start from, and the pairs hold on to the modes.
        "DMD": Method(
            distribution_matching,
            5e-4,
            {"first": 0.5, "fake_score_updates": 3, "share": 1.0, "weight": 0.5, "noise": PICTURE},
            tried=LOWER,
        ),
        "DMD without regression (k = 3)": Method(distribution_matching, 5e-4, {"fake_score_updates": 3}, tried=LOWER),
        "DMD2 without GAN": Method(
            distribution_matching, 2e-4, {"first": 0.5, "fake_score_updates": 3, "noise": WIDER}, tried=LOWEST
        ),
        "DMD2": Method(
            distribution_matching,
            2e-4,
            {"first": 0.5, "fake_score_updates": 3, "gan": 1.0, "noise": WIDER},
            tried=LOWEST,
        ),
        "Consistency distillation": Method(consistency, 1e-4, tried=(1e-4, 3e-4, 1e-3)),
        "Progressive distillation": Method(progressive, 3e-4),
        "Rectified flow (2-reflow)": Method(reflow, 1e-3),
    },
}
