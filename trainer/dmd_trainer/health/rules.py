"""Rules over the measures of a run's health, each with the likely cause and what to change.

Distribution matching goes wrong in a few known ways (DMD2, arXiv 2405.14867, sections 4.1 and 4.2, on what the
regression is there for and on the fake score that cannot keep up): images turn into noise, into one colour, or into
copies of each other, long before a loss is not finite. `health_probe.py` measures, this file judges. It is pure: what
it says follows from the measures alone, so that a resumed run, whose checkpoint has them, judges as if it had not been
interrupted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from dmd_api.spec import Spec

WINDOW = 3
"""A measure counts as the median of its last so many values: one odd value raises no alarm."""
WELL_AFTER = 5
"""A warning ends when its rule has held for so many measures in a row."""
LASTING = 5
"""A run with a warning for so many measures in a row is collapsing: `training.stopOnCollapse` ends it."""
LEARNT_AFTER = 20
"""Measures before what is usual for gradient norms is known."""
REMEMBERED = 50
"""What is usual is the median over so many measures."""


WORSE = 1.25
"""A generator starts as its teacher called once, whose images are blurred: no less than so much worse is wrong."""

Broken = Callable[[Sequence[float], float], bool]
"""(a measure's running medians so far, the present one last; its value at the start) -> whether that breaks a rule."""


@dataclass(frozen=True)
class Rule:
    """What a measure must not do.

    Attributes:
        measure: its name.
        broken: whether it does.
        symptom: what one would see, and the likely cause.
        collapse: whether a run that goes on like this is collapsing.
    """

    measure: str
    broken: Broken
    symptom: str
    collapse: bool = True


def _always_above(limit: float) -> Broken:
    return lambda medians, start: medians[-1] > limit


def _above(limit: float) -> Broken:
    return lambda medians, start: medians[-1] > max(limit, WORSE * start)


def _below(limit: float) -> Broken:
    return lambda medians, start: medians[-1] < min(limit, start / WORSE)


def _nearly_zero(limit: float) -> Broken:
    return lambda medians, start: medians[-1] < limit


def _fallen(share: float, once: float) -> Broken:
    return lambda medians, start: max(medians) > once and medians[-1] < share * max(medians)


def _risen(times: float, floor: float) -> Broken:
    return lambda medians, start: medians[-1] > max(floor, times * min(medians))


def _within(share: float, of: float) -> Broken:
    return lambda medians, start: abs(medians[-1] / of - 1) < share


def _unusual(times: float) -> Broken:
    return lambda medians, start: len(medians) > LEARNT_AFTER and medians[-1] > times * median(medians[-REMEMBERED:])


# Beside each limit, what was measured on the digits teacher in 150 updates, from the tenth on. `Healthy` is the
# example's settings (two seeds), `DMD2` three fake-score updates with a GAN term of 1e-3; `no regression` is one
# fake-score update at a learning rate of 3e-3 (two seeds), `GAN` a generator weight of 10, `slow` a fake score that
# learns at a hundredth of the generator's rate, `idle` one that does not learn. All start at 2.07 in both losses.
RULES = (
    # Healthy 1.0 to 1.36, DMD2 0.64 to 1.1; no regression 1.7 to 88, GAN 1.4 to 6.7, slow 2.3 to 10.7.
    Rule("fake_score_loss", _above(2.0), "the fake score lags behind the generator"),
    # Healthy 0.25 to 0.48, DMD2 0.33 to 0.75, slow 0.006 to 0.09; idle 1e-8.
    Rule("score_difference", _nearly_zero(1e-4), "the fake score does not learn, so that nothing is matched"),
    # Healthy 1.37 to 2.0, DMD2 1.3 to 1.9; no regression 4.4 to 88, GAN 2.5 to 9.6, slow 2.4 to 10.8.
    Rule("teacher_loss", _above(3.0), "the images are turning into what the teacher has never seen, such as noise"),
    # Healthy rises from 0.4 to 0.9 and stays, DMD2 from 0.04 to 0.8.
    Rule("diversity", _fallen(0.5, once=0.3), "the images of one condition are becoming alike"),
    # Healthy and DMD2 0 to 0.013; no regression 0 to 0.99, GAN 0 to 0.3.
    Rule("saturation", _above(0.1), "the images are saturating: values are beyond the teacher's extremes"),
    # Healthy and DMD2 0 to 0.06; no regression 0.2 to 6.2, GAN 0.03 to 1.6.
    Rule("colour_drift", _above(0.5), "the images' colours are drifting away from the teacher's"),
    # Healthy and DMD2 0.88 to 1.02; no regression 0.08 to 2.4, GAN 0.16 to 2.0.
    Rule("contrast", _below(0.5), "the images are fading to one colour"),
    # The emoji teacher, PNDM in 50 steps: 1.2 at guidance 3, 2.4 at 8, 4.5 at 20; DDIM in 18: 1.0, 1.1, 1.2.
    Rule("guidance_contrast", _always_above(2.0), "guidance drives the teacher's own images beyond its range"),
    # Healthy falls from 0.22 to 0.07 and stays.
    Rule("regression_error", _risen(3.0, floor=0.5), "the generator is leaving the teacher's pairs again"),
    # At chance D says nothing, which a head that does not learn does not, and no head can of a perfect generator.
    Rule(
        "discriminator_loss",
        _within(0.01, of=2 * math.log(2)),
        "the GAN's head does not tell real images from generated ones, so that the generator learns nothing from it",
        collapse=False,
    ),
    # Healthy falls from 8 to 1 (generator) and from 1 to 0.3 (fake score).
    Rule("generator_gradient_norm", _unusual(10.0), "the generator's gradients are exploding"),
    Rule("fake_score_gradient_norm", _unusual(10.0), "the fake score's gradients are exploding"),
)
OF_FAKE_SCORE = {"fake_score_loss", "score_difference", "fake_score_gradient_norm"}


class Health:
    """What is wrong with a run, from measures fed in their order.

    Args:
        spec: the manifest's, whose fields the remedies name.
    """

    def __init__(self, spec: Spec) -> None:
        absent = set() if spec.method.regression else {"regression_error"}
        absent |= set() if spec.method.fake_score_updates else OF_FAKE_SCORE
        absent |= set() if spec.method.gan else {"discriminator_loss"}
        self._rules = [rule for rule in RULES if rule.measure not in absent]
        self._remedies = {rule.measure: _remedy(rule.measure, spec) for rule in self._rules}
        self._warmup = spec.training.warmup_steps
        self._start: dict[str, float] = {}
        self._values: dict[str, list[float]] = {rule.measure: [] for rule in self._rules}
        self._medians: dict[str, list[float]] = {rule.measure: [] for rule in self._rules}
        self._held: dict[str, int] = {}  # of the rules that are warned of: for how many measures they have held again
        self._warned_for = 0

    @property
    def warnings(self) -> list[str]:
        """What is wrong now: symptom, likely cause and the field to change; the words stay while the warning lasts."""
        return [
            f"{rule.symptom} ({rule.measure}); {self._remedies[rule.measure]}"
            for rule in self._rules
            if rule.measure in self._held
        ]

    @property
    def endangered(self) -> bool:
        """Whether something is wrong now that ruins a run if it lasts."""
        return any(rule.collapse for rule in self._rules if rule.measure in self._held)

    @property
    def collapsing(self) -> bool:
        """Whether `endangered` has been true for `LASTING` measures."""
        return self._warned_for >= LASTING

    def feed(self, measures: Mapping[str, float]) -> list[str]:
        """Takes what was measured at one step; nothing is judged before the learning rate has warmed up.

        Args:
            measures: by name, and `step`; the first ones are taken for what the generator started with.

        Returns:
            The warnings that are new.
        """
        first, before = not self._start, self.warnings
        if first:
            self._start = dict(measures)
        if first or measures["step"] <= self._warmup:
            return []
        for rule in self._rules:
            if rule.measure not in measures:
                continue
            values, medians = self._values[rule.measure], self._medians[rule.measure]
            values.append(measures[rule.measure])
            if len(values) < WINDOW:
                continue
            medians.append(median(values[-WINDOW:]))
            if rule.broken(medians, self._start.get(rule.measure, 0.0)):
                self._held[rule.measure] = 0
            elif rule.measure in self._held:
                self._held[rule.measure] += 1
                if self._held[rule.measure] == WELL_AFTER:
                    del self._held[rule.measure]
        self._warned_for = self._warned_for + 1 if self.endangered else 0
        return [warning for warning in self.warnings if warning not in before]


def _remedy(measure: str, spec: Spec) -> str:
    """The fields to change, the likeliest first; those that the manifest has."""
    rate = "lower spec.training.learningRate"
    keep_up = f"raise spec.method.fakeScoreUpdates or {rate}" if spec.method.fake_score_updates else rate
    if measure == "guidance_contrast":
        return "lower spec.teacher.guidanceScale"
    if measure == "discriminator_loss":
        return "raise spec.method.gan.guidanceWeight or spec.training.fakeScore.learningRate"
    if measure == "score_difference":
        return "raise spec.training.fakeScore.learningRate"
    if measure.endswith("gradient_norm"):
        return (
            f"{rate}, or spec.training.gradientClipNorm"
            if spec.training.gradient_clip_norm
            else (f"set spec.training.gradientClipNorm or {rate}")
        )
    remedies = []
    if measure in {"saturation", "colour_drift"} and spec.teacher.guidance_scale > 1:
        remedies.append("lower spec.teacher.guidanceScale")
    if spec.method.gan is not None:
        remedies.append("lower spec.method.gan.generatorWeight")
    beside_matching = spec.method.regression is not None and spec.method.fake_score_updates > 0
    if measure in {"diversity", "regression_error"} and beside_matching:
        remedies.append("raise spec.method.regression.weight")
    return "; or ".join([*remedies, keep_up])
