"""A run in MLflow, through a spool: a tracking server that is away for a while loses nothing and stops nothing.

Every record goes into a file first, with its time, and a thread sends the file's records in order. What is not sent
when the process ends goes to the run's storage and is sent by the next tracker of the same run. Sending a record twice
does no harm: a metric is known by its step and time, parameters and tags by their names, and of several statuses the
last one holds.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from dmd_api.errors import DMDError, InterruptedRunError
from dmd_api.manifest import DMDDistillation
from dmd_api.text import neutral
from dmd_trainer.runtime.storage import Storage
from dmd_trainer.tracking.client import TrackedRun
from dmd_trainer.tracking.provenance import inputs_of, provenance_tags
from dmd_trainer.tracking.sender import Sender
from dmd_trainer.tracking.spool import Record, Spool
from dmd_trainer.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

LONGEST_PARAMETER = 500
CLOSE_SECONDS = 30.0
"""Time that the end of a stage waits for a server that is away; what is left goes to storage."""
UNSENT = "tracking/unsent.jsonl"

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""MLflow's."""


class Tracker:
    """One MLflow run of one distillation, shared by its stages and attempts.

    As a context manager it is one attempt at a stage: the run is RUNNING from its beginning, KILLED where an
    interruption ends it, and FAILED where any other error does. A stage that ends well leaves the status alone: another
    one follows, or it has set FINISHED itself.

    Args:
        run: the run, and where it is.
        folder: a local folder of this run's.
        storage: the run's, for what could not be sent.
        on_message: receives a line when the server is away and when it is back.
    """

    def __init__(
        self, run: TrackedRun, folder: Path, storage: Storage, on_message: Callable[[str], None] = logger.info
    ) -> None:
        self.run, self._storage = run, storage
        self._spool = Spool(folder)
        if storage.exists(UNSENT):
            self._spool.append_records(_kept_records(storage.read(UNSENT)))
            storage.delete(UNSENT)
        self._sender = Sender(run, self._spool, on_message)
        self._system_metrics = SystemMetrics(self.log_metrics)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None as long as the server has not answered."""
        return self._sender.run_id

    @property
    def run_url(self) -> str | None:
        """The run's page; None for a database without a server, or as long as the server has not answered."""
        if self.run_id is None or not self.run.uri.startswith("http"):
            return None
        page = f"{self.run.uri.rstrip('/')}/#/experiments/{self._sender.experiment_id}/runs/{self.run_id}"
        return f"{page}?workflowType=machine_learning"  # without it MLflow's page shows what is there of agents

    def log_manifest(self, manifest: DMDDistillation, device: torch.device, processes: int) -> None:
        """Logs the manifest's fields as parameters, what the run reads, and tags by which runs are compared.

        Args:
            manifest: the run's.
            device: a worker's.
            processes: how many workers there are.
        """
        self.log_params(parameters(manifest.spec.model_dump(mode="json", by_alias=True)))
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.set_tags(provenance_tags(manifest, kind, processes))
        self._spool.append("inputs", values=[found.as_record() for found in inputs_of(manifest, self._storage.uri)])

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; long values are cut."""
        self._spool.append("params", values={k: neutral(str(v)[:LONGEST_PARAMETER]) for k, v in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics of a generator update, with the present time."""
        self._spool.append("metrics", values=dict(values), step=step)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._spool.append("tags", values={k: neutral(v) for k, v in values.items()})

    def set_status(self, status: RunStatus) -> None:
        """Sets the run's status, after everything that was logged before."""
        self._spool.append("status", status=status)

    def log_image(self, image: "Image", key: str, step: int) -> None:
        """Logs an image of a series, which MLflow shows with a slider over steps."""
        from dmd_trainer.evaluation.pictures import png

        self._spool.append("image", key=key, step=step, file=self._spool.keep(png(image)))

    def log_artifact(self, content: bytes, name: str) -> None:
        """Logs a file of the run, e.g. `report.json` or `pictures/training.png`."""
        self._spool.append("artifact", name=name, file=self._spool.keep(content))

    def flush(self, timeout: float) -> bool:
        """Waits until all is sent, at most `timeout` seconds; returns whether it is."""
        return self._spool.wait_until_sent(timeout)

    def keep_unsent(self) -> None:
        """Copies what is not sent to the run's storage, where it outlives this machine; called with a checkpoint."""
        lines = [json.dumps(record) for record in self._spool.unsent() if "file" not in record]
        if lines:
            self._storage.write(UNSENT, ("\n".join(lines) + "\n").encode())
        elif self._storage.exists(UNSENT):
            self._storage.delete(UNSENT)

    def __enter__(self) -> Self:
        self.set_status("RUNNING")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self.set_status("KILLED" if isinstance(error, InterruptedRunError) else "FAILED")
        try:
            self.close()
        except (DMDError, OSError) as other:
            # The stage ends with its own error: an interruption must not become a failure here.
            logger.warning("tracking: what %s has not received is not kept in storage: %s", self.run.uri, other)

    def close(self) -> None:
        """Sends what it can within `CLOSE_SECONDS`, keeps the rest in storage, and ends the threads."""
        until = time.monotonic() + CLOSE_SECONDS
        self.flush(CLOSE_SECONDS)
        for thread in (self._sender, self._system_metrics):
            thread.close(max(until - time.monotonic(), 0))
        self.keep_unsent()


def _kept_records(content: bytes) -> Iterator[Record]:
    """What `keep_unsent` wrote. A record that is none, or names a file of this machine, was put there by others."""
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "file" not in record and {"kind", "time"} <= record.keys():
            yield record


def parameters(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A manifest's spec as flat parameters, `training.batchSize`; secrets' names and pod templates are left out."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if key in {"podTemplate", "resources", "credentialsSecretRef"} or value is None:
            continue
        if isinstance(value, Mapping):
            flat |= parameters(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
