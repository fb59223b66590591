"""MLflow, with a spool: a tracking server that is away for a while loses nothing and stops nothing.

Every record is appended to a file first, with its time, and a thread sends the file's records in order. What is not
sent when the process ends goes to the run's storage and is sent by the next tracker of the same run. Sending a record
twice does no harm: a metric is known by its step and time, parameters and tags by their names.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dmd_api.manifest import manifest_hash
from dmd_trainer.evaluation.pictures import png
from dmd_trainer.runtime.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

    from dmd_trainer.runtime.context import StageContext

logger = logging.getLogger(__name__)

RUN_KEY_TAG = "dmd.run_key"
SYSTEM_METRICS_SECONDS = 10.0
LONGEST_PARAMETER = 500
RETRY_SECONDS = (1.0, 15.0)
CLOSE_SECONDS = 30.0
"""How long the end of a stage waits for a server that is away; what is left goes to storage."""
UNSENT = "tracking/unsent.jsonl"


class Tracker:
    """One MLflow run of one distillation, shared by its stages and attempts.

    Args:
        uri: the tracking server's, or `sqlite:///...`.
        experiment: made if it is not there.
        run_name: the run's name.
        run_key: what the run is found by again (tag `dmd.run_key`).
        spool: a local folder of this run's.
        storage: the run's, for what could not be sent.
        on_message: told when the server is away and when it is back.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_key: str,
        spool: Path,
        storage: Storage,
        on_message: Any = logger.info,
    ) -> None:
        # MLflow's own retries block for minutes; the spool's are better.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri = uri
        self._experiment, self._run_name, self._run_key = experiment, run_name, run_key
        self._storage, self._on_message = storage, on_message
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._experiment_id: str | None = None
        self._spool = spool
        spool.mkdir(parents=True, exist_ok=True)
        self._records = spool / "records.jsonl"
        self._position = spool / "position"
        self._records.touch()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._sent = threading.Condition()
        self._closing = threading.Event()
        if storage.exists(UNSENT):
            with self._records.open("ab") as file:
                file.write(storage.read(UNSENT))
            storage.delete(UNSENT)
        self._sender = threading.Thread(target=self._send_records, name="tracking", daemon=True)
        self._sender.start()
        self._system = threading.Thread(target=self._measure_system, name="system-metrics", daemon=True)
        self._system.start()

    @classmethod
    def for_run(cls, context: "StageContext") -> Self:
        """The tracker of the context's run, its parameters logged."""
        manifest = context.manifest
        tracking = manifest.spec.tracking
        assert tracking.uri is not None, "whoever starts a stage resolves the defaults"
        tracker = cls(
            tracking.uri,
            tracking.experiment,
            manifest.metadata.name,
            context.run_key,
            context.scratch / "tracking",
            context.storage,
            context.progress.message,
        )
        tracker.log_params(parameters(manifest.spec.model_dump(mode="json", by_alias=True)))
        tracker.set_tags({"dmd.manifest_hash": manifest_hash(manifest), "dmd.teacher": manifest.spec.teacher.uri})
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None as long as the server has not answered."""
        return self._run_id

    @property
    def run_url(self) -> str | None:
        """The run's page; None for a database without a server, or as long as the server has not answered."""
        if self._experiment_id is None or not self.uri.startswith("http"):
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; long values are cut."""
        self._append({"kind": "params", "values": {k: str(v)[:LONGEST_PARAMETER] for k, v in values.items()}})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics of a generator update, with the present time."""
        self._append({"kind": "metrics", "values": dict(values), "step": step})

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._append({"kind": "tags", "values": dict(values)})

    def log_image(self, image: "Image", key: str, step: int) -> None:
        """Logs an image of a series, which MLflow shows with a slider over steps."""
        self._append({"kind": "image", "key": key, "step": step, "file": self._keep(png(image))})

    def log_artifact(self, content: bytes, name: str) -> None:
        """Logs a file of the run, e.g. `report.json` or `pictures/training.png`."""
        self._append({"kind": "artifact", "name": name, "file": self._keep(content)})

    def flush(self, timeout: float) -> bool:
        """Waits until all is sent, at most `timeout` seconds; whether it is."""
        with self._sent:
            return self._sent.wait_for(lambda: not self._unsent(), timeout)

    def keep_unsent(self) -> None:
        """Copies what is not sent to the run's storage, where it outlives this machine; called with a checkpoint."""
        lines = [json.dumps(record) for record in self._unsent() if "file" not in record]
        if lines:
            self._storage.write(UNSENT, ("\n".join(lines) + "\n").encode())
        elif self._storage.exists(UNSENT):
            self._storage.delete(UNSENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sends what it can, keeps the rest in storage, and ends the threads."""
        self.flush(CLOSE_SECONDS)
        self._closing.set()
        self._news.set()
        self._sender.join(CLOSE_SECONDS)
        self._system.join(CLOSE_SECONDS)
        self.keep_unsent()

    def _keep(self, content: bytes) -> str:
        import uuid

        file = self._spool / f"{uuid.uuid4().hex}.bin"
        file.write_bytes(content)
        return str(file)

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps({**record, "time": int(time.time() * 1000)})
        with self._lock, self._records.open("a") as file:
            file.write(line + "\n")
        self._news.set()

    def _offset(self) -> int:
        return int(self._position.read_text() or 0) if self._position.exists() else 0

    def _unsent(self) -> list[dict[str, Any]]:
        return [record for record, _ in self._read(self._offset())]

    def _read(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Whole records from `offset` on, each with the offset behind it."""
        with self._lock, self._records.open("rb") as file:
            file.seek(offset)
            content = file.read()
        for line in content.splitlines(keepends=True):
            offset += len(line)
            if not line.endswith(b"\n"):
                return  # a process died while writing it
            yield json.loads(line), offset

    def _send_records(self) -> None:
        from mlflow.exceptions import MlflowException

        wait, away = RETRY_SECONDS[0], False
        while not self._closing.is_set():
            self._news.clear()
            try:
                for record, offset in self._read(self._offset()):
                    self._send(record)
                    self._advance(offset)
                    if self._closing.is_set():
                        return
            except (MlflowException, OSError, _database_error()) as error:
                if not away:
                    self._on_message(
                        f"tracking: {self.uri} does not answer ({_short(error)}); records are kept and sent later"
                    )
                away = True
                self._closing.wait(wait)
                wait = min(wait * 2, RETRY_SECONDS[1])
                continue
            if away:
                self._on_message(f"tracking: {self.uri} answers again, all records are sent")
            wait, away = RETRY_SECONDS[0], False
            self._news.wait()

    def _advance(self, offset: int) -> None:
        partial = self._position.with_suffix(".partial")
        partial.write_text(str(offset))
        partial.replace(self._position)
        with self._sent:
            self._sent.notify_all()

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

        client, run = self._connect()
        try:
            match record["kind"]:
                case "metrics":
                    values, when = record["values"], record["time"]
                    client.log_batch(run, metrics=[Metric(k, v, when, record["step"]) for k, v in values.items()])
                case "params":
                    items = list(record["values"].items())
                    for start in range(0, len(items), 100):  # MLflow takes so many at once
                        client.log_batch(run, params=[Param(k, v) for k, v in items[start : start + 100]])
                case "tags":
                    client.log_batch(run, tags=[RunTag(k, v) for k, v in record["values"].items()])
                case "image" | "artifact":
                    self._send_file(client, run, record)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise
            # The server understood and refused: asking again would hold up everything behind it.
            self._on_message(f"tracking: a record of kind {record['kind']} was refused: {_short(error)}")

    def _send_file(self, client: "MlflowClient", run: str, record: dict[str, Any]) -> None:
        from io import BytesIO

        from PIL import Image

        file = Path(record["file"])
        if not file.exists():
            return  # it was sent, and the process died before it noted so
        if record["kind"] == "image":
            client.log_image(run, Image.open(BytesIO(file.read_bytes())), key=record["key"], step=record["step"])
        else:
            folder, _, name = record["name"].rpartition("/")
            named = self._spool / "named" / name
            named.parent.mkdir(exist_ok=True)
            named.write_bytes(file.read_bytes())
            client.log_artifact(run, str(named), folder or None)
            named.unlink()
        file.unlink()

    def _connect(self) -> "tuple[MlflowClient, str]":
        if self._client is None or self._run_id is None:
            self._client = mlflow_client(self.uri)
            self._run_id = find_or_create_run(self._client, self.uri, self._experiment, self._run_name, self._run_key)
            self._experiment_id = str(self._client.get_run(self._run_id).info.experiment_id)
        return self._client, self._run_id

    def _measure_system(self) -> None:
        """Logs what MLflow's own monitors measure, by the spool like everything else."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            monitors.append(GPUMonitor())
        except (ImportError, RuntimeError):
            logger.debug("no GPU to monitor")
        step = 0
        while not self._closing.wait(SYSTEM_METRICS_SECONDS):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self.log_metrics(values, step)
            step += 1


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of the tracking server and model registry at `uri`."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def find_or_create_run(client: "MlflowClient", uri: str, experiment: str, run_name: str, run_key: str) -> str:
    """The id of the run with this key; runs and experiments that are not there are made."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            experiment_id = client.create_experiment(experiment, artifact_location=local_artifacts(uri))
        except MlflowException:
            # Another run may have made it in between.
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
            experiment_id = found.experiment_id
    else:
        experiment_id = found.experiment_id
    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment_id, run_name=run_name, tags={RUN_KEY_TAG: run_key}).info.run_id)


def local_artifacts(uri: str) -> str | None:
    """Where artifacts of a server-less `sqlite:///` store go: beside the database; None where a server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


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


def _database_error() -> type[Exception]:
    """What a `sqlite:///` store raises when its file cannot be opened or is locked."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
