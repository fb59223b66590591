"""Sends a spool's records to MLflow in their order, from a thread of its own."""

import json
import threading
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dmd_api.errors import BadInputError, DMDError
from dmd_trainer.tracking.client import TrackedRun, find_or_create_run, is_invalid, mlflow_client, retry_waits, short
from dmd_trainer.tracking.spool import Record, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMETERS_AT_ONCE = 100
"""As many as MLflow takes in one request."""


class Sender:
    """A thread that sends what is in the spool, and waits while the server is away.

    Args:
        run: where records go.
        spool: where they come from.
        on_message: receives a line when the server is away, when it is back and when it refuses a record.
    """

    def __init__(self, run: TrackedRun, spool: Spool, on_message: Callable[[str], None]) -> None:
        self._run, self._spool, self._on_message = run, spool, on_message
        self._client: MlflowClient | None = None
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Ends the thread after the record that it is sending."""
        self._closing.set()
        self._spool.wake()
        self._thread.join(timeout)

    def _send_all(self) -> None:
        waits, away = retry_waits(), False
        while not self._closing.is_set():
            self._spool.clear_news()
            try:
                for record, offset in self._spool.read():
                    self._send(record)
                    self._spool.mark_sent(offset)
                    if self._closing.is_set():
                        return
            except Exception as error:  # artifact stores raise errors of their own kinds, and the thread has to live
                if not away:
                    says = short(error) if isinstance(error, DMDError) else f"does not answer ({short(error)})"
                    self._on_message(f"tracking: {self._run.uri}: {says}; records are kept and sent later")
                away = True
                self._closing.wait(next(waits))
                continue
            if away:
                self._on_message(f"tracking: {self._run.uri} answers again, all records are sent")
            waits, away = retry_waits(), False
            self._spool.wait_for_news()

    def _send(self, record: Record) -> None:
        client, run = self._connect()
        from mlflow.entities import Metric, Param, RunTag

        values = record.get("values", {})
        try:
            match record["kind"]:
                case "metrics":
                    when, step = record["time"], record["step"]
                    client.log_batch(run, metrics=[Metric(k, v, when, step) for k, v in values.items()])
                case "params":
                    items = [Param(k, v) for k, v in values.items()]
                    for start in range(0, len(items), PARAMETERS_AT_ONCE):
                        client.log_batch(run, params=items[start : start + PARAMETERS_AT_ONCE])
                case "tags":
                    client.log_batch(run, tags=[RunTag(k, v) for k, v in values.items()])
                case "inputs":
                    client.log_inputs(run, datasets=[_dataset(found) for found in values])
                case "status" if record["status"] == "RUNNING":
                    client.update_run(run, status=record["status"])
                case "status":
                    client.set_terminated(run, record["status"], record["time"])
                case "image" | "artifact":
                    self._send_file(client, run, record)
        except Exception as error:
            if not (isinstance(error, BadInputError) or is_invalid(error)):
                raise
            # The server understood and refused, or it was not asked: again would hold up everything behind it.
            self._on_message(f"tracking: a record of kind {record['kind']} was refused: {short(error)}")

    def _send_file(self, client: "MlflowClient", run: str, record: Record) -> None:
        from PIL import Image

        file = self._spool.kept(record["file"])
        if not file.exists():
            return  # it was sent, and the process died before it noted so
        if record["kind"] == "image":
            client.log_image(run, Image.open(BytesIO(file.read_bytes())), key=record["key"], step=record["step"])
        else:
            folder = record["name"].rpartition("/")[0]
            named = self._spool.kept(f"named/{record['name']}")
            named.parent.mkdir(parents=True, exist_ok=True)
            named.write_bytes(file.read_bytes())
            client.log_artifact(run, str(named), folder or None)
            named.unlink()
        file.unlink()

    def _connect(self) -> "tuple[MlflowClient, str]":
        if self._client is None or self.run_id is None:
            self._client = mlflow_client(self._run.uri)
            run_id = find_or_create_run(self._client, self._run)
            self.experiment_id = str(self._client.get_run(run_id).info.experiment_id)
            self.run_id = run_id
        return self._client, self.run_id


def _dataset(found: dict[str, str]) -> Any:
    """An input as MLflow has it; the same one again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": found["uri"]})
    dataset = Dataset(found["name"], found["digest"], found["source_type"], source)
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", found["context"])])
