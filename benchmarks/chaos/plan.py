"""Which disturbances a run gets, and when: its number alone decides."""

import random
from dataclasses import dataclass

from tests.e2e.disturbances import ALL

from dmd_api.status import PHASES

MOST = 3
LATEST = 12.0
"""Seconds after a stage's beginning; most stages of a small run are over by then."""


@dataclass(frozen=True)
class Planned:
    """One disturbance.

    Attributes:
        what: its name in `tests.e2e.disturbances`.
        phase: that of the run in which it comes; at once where the run is further already.
        after: seconds after the phase was first seen.
        seed: of what it chooses itself, a pod or a time.
    """

    what: str
    phase: str
    after: float
    seed: int


def plan(number: int) -> list[Planned]:
    """The disturbances of a run, in their order."""
    choose = random.Random(number)
    phases = list(PHASES.values())
    chosen = []
    for _ in range(choose.randint(1, MOST)):
        what, phase = choose.choice(list(ALL)), choose.choice(phases)
        chosen.append(Planned(what, phase, round(choose.uniform(0, LATEST), 1), choose.getrandbits(32)))
    return sorted(chosen, key=lambda planned: (phases.index(planned.phase), planned.after))
