"""The generator in MLflow's model registry: logged, registered once, and given its alias if it earned it."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from dmd_api.errors import BadInputError, InfrastructureError
from dmd_trainer.tracking.tracker import find_or_create_run, mlflow_client

T = TypeVar("T")

GENERATOR_TAG = "dmd.generator_sha256"
RUN_KEY_TAG = "dmd.run_key"
OUTAGE_SECONDS = 600
"""How long a tracking server that is away is waited for before the stage gives up (and is tried again)."""
REQUIREMENTS = ("mlflow", "torch", "diffusers", "transformers", "safetensors", "pillow", "pandas", "numpy")
"""What the model is loaded with; pinned to what is installed here."""


def register_generator(
    uri: str,
    experiment: str,
    run_name: str,
    run_key: str,
    name: str,
    pipeline: Path,
    arguments: dict[str, Any],
    condition: str | None,
    tags: dict[str, str],
) -> str:
    """Logs the pipeline as a pyfunc model of the run and registers it; what is registered already is found again.

    Args:
        uri: the tracking server and registry.
        experiment: the run's.
        run_name: the run's.
        run_key: the run's.
        name: the registered model's.
        pipeline: the diffusers pipeline's folder.
        arguments: what the pipeline is called with.
        condition: the column that says what an image shows: class_label, prompt, or None.
        tags: of the model version; GENERATOR_TAG among them, by which a version is found again.

    Returns:
        The model version, which is READY.

    Raises:
        InfrastructureError: the server does not answer for longer than the retries last.
        BadInputError: it refuses.
    """
    import mlflow

    client = mlflow_client(uri)

    def register() -> str:
        sha256 = tags[GENERATOR_TAG]
        _make_registered_model(client, name)
        for known in client.search_model_versions(f"name = '{name}'"):
            if known.tags.get(GENERATOR_TAG) == sha256 and known.tags.get(RUN_KEY_TAG) == run_key:
                return str(known.version)
        run_id = find_or_create_run(client, uri, experiment, run_name, run_key)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        example = _input_example(condition)
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="generator",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"pipeline": str(pipeline)},
                model_config=arguments,
                signature=_signature(condition),
                input_example=example,
                pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
            )
        registered = mlflow.register_model(
            logged.model_uri, name, await_registration_for=300, tags={**tags, RUN_KEY_TAG: run_key}
        )
        return str(registered.version)

    return _retry(uri, register)


def set_alias(uri: str, name: str, alias: str, model_version: str) -> None:
    """Points the alias at a version; errors as `register_generator`."""
    _retry(uri, lambda: mlflow_client(uri).set_registered_model_alias(name, alias, model_version))


def finish_run(uri: str, run_id: str) -> None:
    """Marks the run as finished; errors as `register_generator`."""
    _retry(uri, lambda: mlflow_client(uri).set_terminated(run_id))


def check_reachable(uri: str) -> None:
    """Asks the tracking server for anything at all; errors as `register_generator`, without its patience.

    Raises:
        InfrastructureError: it does not answer.
        BadInputError: it refuses.
    """
    _retry(uri, lambda: mlflow_client(uri).search_experiments(max_results=1), patience=0)


def _make_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _input_example(condition: str | None) -> Any:
    import pandas as pd

    columns: dict[str, Any] = {"seed": [0, 1]}
    if condition is not None:
        columns[condition] = [3, 7] if condition == "class_label" else ["a red apple", "a blue boat"]
    return pd.DataFrame(columns)


def _signature(condition: str | None) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs = [ColSpec(DataType.long, "seed")]
    if condition is not None:
        inputs.append(ColSpec(DataType.long if condition == "class_label" else DataType.string, condition))
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([ColSpec(DataType.string, "png")]))


def _retry(uri: str, action: Callable[[], T], patience: float = OUTAGE_SECONDS) -> T:
    """Does it, again and again while the server is away."""
    import tenacity
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    # What a server says of a request it understood; everything else is a server that is away or ill.
    refusals = {
        "INVALID_PARAMETER_VALUE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "BAD_REQUEST",
        "RESOURCE_DOES_NOT_EXIST",
    }

    def passing(error: BaseException) -> bool:
        if isinstance(error, MlflowException):
            return error.error_code not in refusals
        return isinstance(error, RequestException | SQLAlchemyError | ConnectionError)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passing),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
        stop=tenacity.stop_after_delay(patience),
        reraise=True,
    )
    try:
        return retrying(action)
    except (MlflowException, RequestException, SQLAlchemyError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if passing(error):
            raise InfrastructureError(f"spec.tracking.uri: {uri} does not answer ({reason}); is it up?") from error
        raise BadInputError(f"spec.tracking.uri: {uri} refuses: {reason}") from error
