"""An allowance of events: some at once, then one now and again, as a pod may cause as many as it likes."""

from dataclasses import dataclass

AT_ONCE = 20
SECONDS_EACH = 300.0


@dataclass
class Allowance:
    """What is left for the events of one run and one reason.

    Attributes:
        left: how many events, of which parts grow back.
        at: when that was counted, by `time.monotonic`.
    """

    left: float = AT_ONCE
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Takes one, if there is one left."""
        self.left = min(AT_ONCE, self.left + (now - self.at) / SECONDS_EACH)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
