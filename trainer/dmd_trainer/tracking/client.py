"""The tracking server: its client, the run that a distillation has there, and how long a server may be away."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self, TypeVar

from dmd_api.errors import BadInputError, InfrastructureError
from dmd_api.manifest import DMDDistillation

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

RUN_KEY_TAG = "dmd.run_key"
OUTAGE_SECONDS = 600
"""Time that a stage which needs the tracking server waits for it before it gives up (and is tried again)."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 15.0
INVALID = "INVALID_PARAMETER_VALUE"
REFUSALS = {INVALID, "PERMISSION_DENIED", "UNAUTHENTICATED", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}
"""Error codes of a server that understood a request and says no; any other error is a server that is away or ill."""

_importing = threading.Lock()


@dataclass(frozen=True)
class TrackedRun:
    """The MLflow run of a distillation, which tracker and registry find by the same key.

    Attributes:
        uri: of the tracking server and model registry, or `sqlite:///...`.
        experiment: created if it does not exist.
        name: the run's name.
        key: what the run is found by again (tag `dmd.run_key`).
    """

    uri: str
    experiment: str
    name: str
    key: str

    @classmethod
    def of(cls, manifest: DMDDistillation, key: str) -> Self:
        """The run that a manifest asks for."""
        tracking = manifest.spec.tracking
        assert tracking.uri is not None, "whoever starts a stage resolves the defaults"
        return cls(tracking.uri, tracking.experiment, manifest.metadata.name, key)


def import_mlflow() -> ModuleType:
    """Returns mlflow, imported by one thread at a time: two at once would each find it half-initialised."""
    with _importing:
        import mlflow
    return mlflow


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of the tracking server and model registry at `uri`."""
    # MLflow's own retries block for minutes; those of this file are better.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    client: MlflowClient = import_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
    return client


def find_or_create_run(client: "MlflowClient", run: TrackedRun) -> str:
    """MLflow's id of the run; it and its experiment are created if they do not exist."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(run.experiment)
    if found is None:
        try:
            experiment_id = client.create_experiment(run.experiment, artifact_location=local_artifacts(run.uri))
        except MlflowException:
            # Another run may have created it in between.
            found = client.get_experiment_by_name(run.experiment)
            if found is None:
                raise
            experiment_id = found.experiment_id
    else:
        experiment_id = found.experiment_id
    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run.key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment_id, run_name=run.name, tags={RUN_KEY_TAG: run.key}).info.run_id)


def local_artifacts(uri: str) -> str | None:
    """The artifacts' place of a server-less `sqlite:///` store, next to the database; None where a server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def retry_waits() -> Iterator[float]:
    """Seconds to wait before each next try: doubled up to a limit, shortened at random so that runs spread out."""
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1)
        wait = min(2 * wait, LONGEST_WAIT)


def ask(
    uri: str, action: Callable[[], T], patience: float = OUTAGE_SECONDS, before_retry: Callable[[], None] = lambda: None
) -> T:
    """The result of `action`, which is tried again while the server is away.

    Args:
        uri: the server's, for messages.
        action: makes requests of it; safe to repeat.
        patience: seconds after which no further try is made.
        before_retry: called before each wait; may raise to stop.

    Raises:
        InfrastructureError: the server stayed away.
        BadInputError: it refuses.
    """
    import_mlflow()
    import tenacity
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    def away(error: BaseException) -> bool:
        if isinstance(error, MlflowException):
            return error.error_code not in REFUSALS
        return isinstance(error, RequestException | SQLAlchemyError | ConnectionError)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(away),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        stop=tenacity.stop_before_delay(patience),
        before_sleep=lambda _: before_retry(),
        reraise=True,
    )
    try:
        return retrying(action)
    except (MlflowException, RequestException, SQLAlchemyError, ConnectionError) as error:
        if away(error):
            raise InfrastructureError(
                f"spec.tracking.uri: {uri} does not answer ({short(error)}); is it up?"
            ) from error
        raise BadInputError(f"spec.tracking.uri: {uri} refuses: {short(error)}") from error


def is_invalid(error: Exception) -> bool:
    """Returns whether the server says that a request is wrong in itself, so that repeating it is useless."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == INVALID


def short(error: Exception) -> str:
    """An error's first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
