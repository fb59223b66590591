"""Which of several installations that see a run looks after it.

A run belongs to the installation that wrote its first status, by the name of its Lease. Another one keeps its hands off
and says so, and takes the run over when what is to be done has not been done for minutes: then its owner is gone.
"""

from dataclasses import replace
from datetime import timedelta

from dmd_operator.decision import Decision, Event
from dmd_operator.seen import SeenRun

LOOK_AGAIN = timedelta(seconds=30)
"""How soon another installation's run is looked at again, unless this one's patience is shorter."""


class Ownership:
    """What this installation has to do with a run.

    Args:
        own: this installation; None: it has no name, and every run is its own.
        patience: how long, in seconds, another one's run may need something before it is taken over.
    """

    def __init__(self, own: str | None, patience: float) -> None:
        self._own, self._patience = own, patience
        self.look_again = min(LOOK_AGAIN, timedelta(seconds=patience / 2))

    def left_to(self, decision: Decision, seen: SeenRun, now: float) -> str | None:
        """The other installation that looks after a run; None where this one does, or takes it over now.

        Args:
            decision: what is to be done about the run.
            seen: the run, of which is remembered since when it needs something.
            now: the time, by `time.monotonic`.
        """
        owner = decision.status.operator
        if self._own is None or owner in {None, self._own}:
            return None
        since = seen.neglected_since if seen.neglected_since is not None else now
        seen.neglected_since = since if decision.acts else None
        return owner if not decision.acts or now - since < self._patience else None

    def owned(self, decision: Decision) -> Decision:
        """The decision as that of this installation, whoever's the run was before."""
        owner = decision.status.operator
        if self._own is None or owner == self._own:
            return decision
        decision = replace(decision, status=decision.status.model_copy(update={"operator": self._own}))
        if owner is None:
            return decision
        message = f"{self._own} takes this run over from {owner}, which has not done what was to be done"
        return replace(decision, events=(Event("TakenOver", message), *decision.events))

    def notice(self, owner: str) -> Event:
        """What is said about a run that is left to another installation."""
        message = (
            f"{self._own} leaves this run to {owner}, which looked at it first: two installations watch this "
            "namespace. Give each one namespaces of its own (watchNamespaces in the chart's values)"
        )
        return Event("OwnedByAnother", message, warning=True)
