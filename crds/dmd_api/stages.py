"""The stages of a distillation: those of a manifest, their pods, processes, retries and grace."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import Spec

SHUTDOWN_SECONDS = 120
"""The time that workers get for a checkpoint after SIGTERM, before they are killed."""
GRACE_SECONDS = SHUTDOWN_SECONDS + 60
"""A pod's grace period: its launcher has a minute left when its workers are gone."""


@dataclass(frozen=True)
class Size:
    """The size of an attempt.

    Attributes:
        nodes: pods, or launchers on one machine.
        processes_per_node: workers that each of them starts.
    """

    nodes: int
    processes_per_node: int


class Stage(StrEnum):
    """The stages of a distillation, in their order."""

    PREFLIGHT = "preflight"
    PREPARE = "prepare"
    DISTILL = "distill"
    EVALUATE = "evaluate"

    @property
    def collective(self) -> bool:
        """Its workers compute together: they meet, form a process group, and none goes on without the others.

        The workers of other stages are alone, and a worker's number says which share of the work is its own.
        """
        return self in {Stage.DISTILL, Stage.EVALUATE}

    def meets(self, nodes: int) -> bool:
        """With this many nodes, its launchers look for each other by name; one alone needs nobody."""
        return self.collective and nodes > 1

    @property
    def tracked(self) -> bool:
        """It logs to the tracking server."""
        return self in {Stage.DISTILL, Stage.EVALUATE}

    @property
    def pod_retries(self) -> int:
        """The retries of each of its pods by their Job; at 0 a pod that fails or is lost ends the attempt."""
        return 3 if self is Stage.PREPARE else 0

    def size(self, spec: Spec) -> Size:
        """The size of an attempt in a cluster."""
        match self:
            case Stage.PREFLIGHT:
                return Size(1, 1)
            case Stage.PREPARE:
                # More pods, and not more processes in each, make more pairs at a time.
                return Size(spec.pair_workers.parallelism, 1)
            case _:
                return Size(spec.workers.nodes, spec.workers.processes_per_node)

    def local_size(self, spec: Spec) -> Size:
        """The size of an attempt on one machine, where all stages share the same processors."""
        return Size(1, 1) if self is Stage.PREFLIGHT else Size(spec.workers.nodes, spec.workers.processes_per_node)


def stages(manifest: DMDDistillation) -> list[Stage]:
    """The stages that a run has."""
    return _stages(regresses=manifest.spec.method.regression is not None)


def stages_of(spec: Mapping[str, Any]) -> list[Stage]:
    """The stages of a `spec` as the API server has it, which may be of a newer version than the models here."""
    return _stages(regresses=(spec.get("method") or {}).get("regression") is not None)


def _stages(*, regresses: bool) -> list[Stage]:
    """Without a regression there are no pairs to prepare."""
    return [stage for stage in Stage if regresses or stage is not Stage.PREPARE]
