"""The context of a stage: its manifest, places and peers."""

import signal
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from dmd_api.errors import InterruptedRunError
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage
from dmd_trainer.runtime.progress import ProgressBoard
from dmd_trainer.runtime.storage import Storage

if TYPE_CHECKING:
    from dmd_trainer.tracking.tracker import Tracker


@dataclass
class StageContext:
    """A stage's manifest, places and peers.

    Attributes:
        stage: the stage that runs.
        manifest: the whole manifest, its defaults resolved.
        run_key: the run's key in storage and tracking.
        attempt: the number of this attempt, from 1.
        storage: the run's own part of the storage.
        shared_storage: storage that all runs share, for caches keyed by hash.
        rank: this process among the stage's.
        world_size: how many processes the stage has.
        device: where this process computes.
        scratch: a local folder of this node's.
        progress: the stage's progress, which rank 0 shows.
        tracker: MLflow, on rank 0; None elsewhere.
    """

    stage: Stage
    manifest: DMDDistillation
    run_key: str
    attempt: int
    storage: Storage
    shared_storage: Storage
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    progress: ProgressBoard = field(default_factory=lambda: ProgressBoard(Stage.DISTILL))
    tracker: "Tracker | None" = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype that networks run in, from `spec.training.precision`."""
        return torch.bfloat16 if self.manifest.spec.training.precision == "bf16" else None

    def should_stop(self) -> bool:
        """Whether this process was told to stop; ranks may differ until they agree on it."""
        return self._stop.is_set()

    def stop_at_signals(self) -> None:
        """Lets SIGTERM and SIGINT set `should_stop` instead of ending the process."""

        def stop(signum: int, frame: FrameType | None) -> None:
            self._stop.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def raise_if_stopped(self) -> None:
        """For stages whose finished parts are in storage already.

        Raises:
            InterruptedRunError: this process was told to stop.
        """
        if self.should_stop():
            raise InterruptedRunError(f"{self.stage} was interrupted; what is finished is kept, the next run goes on")
