"""The tracking server: its client, the run that a distillation has there, and how long a server may be away."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self, TypeVar

from dmd_api.errors import BadInputError, DMDError, InfrastructureError, InterruptedRunError
from dmd_api.manifest import DMDDistillation
from dmd_trainer.runtime.certificates import NOT_TRUSTED, is_untrusted
from dmd_trainer.tracking.provenance import creator_tags

if TYPE_CHECKING:
    import tenacity
    from mlflow import MlflowClient

T = TypeVar("T")

RUN_KEY_TAG = "dmd.run_key"
OUTAGE_SECONDS = 600
"""Time that a stage which needs the tracking server waits for it before it gives up (and is tried again)."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 15.0
INVALID = "INVALID_PARAMETER_VALUE"
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens an experiment's page on its training runs, and not on traces."""
PASSING_STATUSES = {408, 409, 429, 499}
"""HTTP's statuses below 500 that another try may end; by all others below it a server says no."""
SETTLED = ("not in a valid JSON format", "out-of-date database schema", "!= 200", "Invalid url")
"""Texts of MLflow's errors, which it has no code for, about a server that is none of its own or too old for it."""

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
    """MLflow's id of the run; it and its experiment are created if they do not exist.

    Raises:
        BadInputError: the experiment was deleted: MLflow keeps its name, and takes nothing for it.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(run.experiment)
    if found is None:
        try:
            place = local_artifacts(run.uri)
            experiment_id = client.create_experiment(run.experiment, artifact_location=place, tags=EXPERIMENT_KIND)
        except MlflowException:
            # Another run may have created it in between.
            found = client.get_experiment_by_name(run.experiment)
            if found is None:
                raise
            experiment_id = found.experiment_id
    else:
        experiment_id = found.experiment_id
        if found.lifecycle_stage == "deleted":
            raise BadInputError(
                f"spec.tracking.experiment: {run.experiment} is deleted at {run.uri}; bring it back with mlflow "
                f"experiments restore --experiment-id {experiment_id}, or name another one"
            )
    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run.key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    tags = {RUN_KEY_TAG: run.key, **creator_tags()}  # whoever goes on with the run has not created it
    return str(client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id)


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


def patient(
    away: Callable[[BaseException], bool], patience: float, before_retry: Callable[[], None]
) -> "tenacity.Retrying":
    """Tries again for as long as a server is away.

    Args:
        away: whether an error says that it is.
        patience: seconds after which no further try is made.
        before_retry: called before each wait; may raise to stop.
    """
    import tenacity

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(away),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        stop=tenacity.stop_before_delay(patience),
        before_sleep=lambda _: before_retry(),
        reraise=True,
    )


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
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    def away(error: BaseException) -> bool:
        if is_untrusted(error):
            return False
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
            settled = any(text in str(error) for text in SETTLED)
            return not settled and (status >= 500 or status in PASSING_STATUSES)
        return isinstance(error, RequestException | SQLAlchemyError | ConnectionError)

    try:
        return patient(away, patience, before_retry)(action)
    except (MlflowException, RequestException, SQLAlchemyError, ConnectionError) as error:
        if away(error):
            raise InfrastructureError(
                f"spec.tracking.uri: {uri} does not answer ({short(error)}); is it up?"
            ) from error
        if is_untrusted(error):
            raise BadInputError(f"spec.tracking.uri: {uri} answers, but {NOT_TRUSTED}") from error
        raise BadInputError(f"spec.tracking.uri: {uri} refuses: {short(error)}") from error


@contextmanager
def failing_run(run: TrackedRun, run_id: str) -> Iterator[None]:
    """Ends the run in MLflow where what is inside fails: KILLED where it was interrupted, FAILED otherwise."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, InterruptedRunError) else "FAILED"
        with suppress(DMDError):  # the stage ends with its own error
            ask(run.uri, lambda: mlflow_client(run.uri).set_terminated(run_id, status), patience=0)
        raise


def is_invalid(error: Exception) -> bool:
    """Returns whether the server says that a request is wrong in itself, so that repeating it is useless."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == INVALID


def short(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
