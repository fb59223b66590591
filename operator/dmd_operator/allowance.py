"""An allowance: some at once, then one now and again. Of events, which a pod may cause as many of as it likes."""

from dataclasses import dataclass

AT_ONCE = 20
SECONDS_EACH = 300.0


@dataclass
class Allowance:
    """What is left; for the events of one run and one reason unless told otherwise.

    Attributes:
        at_once: how many there are to begin with, and at most.
        seconds_each: how long one takes to grow back.
        left: how many are left, of which parts grow back.
        at: when that was counted, by `time.monotonic`.
    """

    at_once: int = AT_ONCE
    seconds_each: float = SECONDS_EACH
    left: float = float("inf")
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Takes one, if there is one left."""
        self.left = min(self.at_once, self.left + (now - self.at) / self.seconds_each)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
