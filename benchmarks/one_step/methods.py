"""The methods by name.

Learning rates are the best of 3e-4, 1e-3 and 3e-3 in each method's pilot (`python -m benchmarks.one_step.pilot`), the
lower one where two tied. Variational score distillation diverged with all three; of 3e-5 and 1e-4 it got the better.
FID in the pilot (5,000 samples, 100,000 network evaluations, one seed that the comparison does not use):

                                            3e-5     1e-4     3e-4     1e-3     3e-3
    DMD                                                      0.478    0.326    0.433
    DMD2 without GAN (k = 5)                                 4.150    0.936    0.935
    Variational score distillation (k = 1)  7.916    5.817  36.000  117.403  117.037
    Regression alone                                         0.309    0.281    0.292
    Consistency distillation                                 2.267    2.357    2.143
    Progressive distillation                                 0.713    0.634    0.775
    Rectified flow (2-reflow)                                1.020    0.617    0.516
"""

from collections.abc import Callable
from functools import partial

from benchmarks.one_step.consistency import consistency
from benchmarks.one_step.distribution_matching import distribution_matching
from benchmarks.one_step.progressive import progressive
from benchmarks.one_step.reflow import reflow
from benchmarks.one_step.regression import regression
from benchmarks.one_step.setting import Sampler, Setting

Method = Callable[[Setting, float], Sampler]
"""(setting, learning rate) -> the one-step generator."""

METHODS: dict[str, tuple[Method, float]] = {
    # The example spends the same share on its pairs: 8,192 pairs beside 1,500 steps.
    "DMD": (partial(distribution_matching, share=0.21), 1e-3),
    "DMD2 without GAN (k = 5)": (partial(distribution_matching, fake_score_updates=5), 1e-3),
    "Variational score distillation (k = 1)": (distribution_matching, 1e-4),
    "Regression alone": (regression, 1e-3),
    "Consistency distillation": (consistency, 3e-3),
    "Progressive distillation": (progressive, 1e-3),
    "Rectified flow (2-reflow)": (reflow, 3e-3),
}
