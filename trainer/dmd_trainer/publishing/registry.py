"""The generator in MLflow's model registry: logged, registered once, and given its alias if it earned it."""

import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dmd_api.errors import BadInputError, refusing
from dmd_api.text import neutral
from dmd_trainer.publishing.model_card import PICTURE
from dmd_trainer.tracking.client import RUN_KEY_TAG, TrackedRun, ask, find_or_create_run, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

GENERATOR_TAG = "dmd.generator_sha256"
REQUIREMENTS = ("mlflow", "torch", "diffusers", "transformers", "safetensors", "pillow", "pandas", "numpy")
"""Packages that load the model; pinned to the versions installed here."""


@dataclass(frozen=True)
class RegistryEntry:
    """A generator as it enters the registry.

    Attributes:
        name: the registered model's.
        pipeline: the diffusers pipeline's folder.
        arguments: what the pipeline is called with.
        condition: the column that says what an image shows: class_label, prompt, or None.
        sha256: of the weights; with the run's key a version is found again by it.
        tags: more tags of the model version.
    """

    name: str
    pipeline: Path
    arguments: dict[str, Any]
    condition: str | None
    sha256: str
    tags: dict[str, str] = field(default_factory=dict)


LONGEST_DESCRIPTION = 5_000
"""Characters that a tracking server's database takes."""
_FIELDS = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Registered:
    """A model version, which is READY, and the MLflow id of its run."""

    model_version: str
    run_id: str


def register_generator(
    run: TrackedRun, entry: RegistryEntry, before_retry: Callable[[], None] = lambda: None
) -> Registered:
    """Logs the pipeline as a pyfunc model of the run and registers it; what is registered already is found again.

    Args:
        run: whose model it is.
        entry: what is registered.
        before_retry: called before each wait for a server that is away; may raise to stop.

    Raises:
        InfrastructureError: the server does not answer for longer than the retries last.
        BadInputError: it refuses.
    """
    client = mlflow_client(run.uri)

    def register() -> Registered:
        _make_registered_model(client, entry.name)
        run_id = find_or_create_run(client, run)
        for known in client.search_model_versions(f"name = '{entry.name}'"):
            if known.tags.get(GENERATOR_TAG) == entry.sha256 and known.tags.get(RUN_KEY_TAG) == run.key:
                return Registered(str(known.version), run_id)
        return Registered(_log_and_register(client, run, run_id, entry), run_id)

    return ask(run.uri, register, before_retry=before_retry)


def set_alias(
    uri: str, name: str, alias: str, model_version: str, before_retry: Callable[[], None] = lambda: None
) -> None:
    """Points the alias at a version; errors as `register_generator`."""
    ask(
        uri,
        lambda: mlflow_client(uri).set_registered_model_alias(name, alias, model_version),
        before_retry=before_retry,
    )


def tag_version(
    uri: str, name: str, model_version: str, tags: Mapping[str, str], before_retry: Callable[[], None] = lambda: None
) -> None:
    """Sets tags of a version; errors as `register_generator`."""

    def tag() -> None:
        for key, value in tags.items():
            mlflow_client(uri).set_model_version_tag(name, model_version, key, value)

    ask(uri, tag, before_retry=before_retry)


def open_run(run: TrackedRun, name: str, manifest: str) -> str:
    """Makes what a run needs at its end in MLflow, as far as it can be made before: run, an artifact, registered model.

    Args:
        run: made if it is not there, and SCHEDULED until its first stage with a tracker begins.
        name: the registered model's.
        manifest: kept with the run as `manifest.json`, which shows that its artifacts can be written.

    Returns:
        MLflow's id of the run.

    Raises:
        InfrastructureError: the server does not answer.
        BadInputError: it refuses, is no MLflow server, or the experiment was deleted.
    """

    def make() -> str:
        client = mlflow_client(run.uri)
        run_id = find_or_create_run(client, run)
        _ = client.get_run(run_id).data.tags[RUN_KEY_TAG]  # a server of another kind may answer anything at all
        client.update_run(run_id, status="SCHEDULED")
        client.log_text(run_id, manifest, "manifest.json")
        _make_registered_model(client, name)
        return run_id

    with refusing(f"spec.tracking.uri: {run.uri}: what it answers is not MLflow's", "check the address"):
        if run.uri.startswith("sqlite:///"):
            _open_database(Path(run.uri.removeprefix("sqlite:///")))
        return ask(run.uri, make, patience=0)


def _open_database(path: Path) -> None:
    """Opens it once without MLflow, which tries for minutes to open what is no database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA schema_version")


def _log_and_register(client: "MlflowClient", run: TrackedRun, run_id: str, entry: RegistryEntry) -> str:
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(run.uri)
    mlflow.set_registry_uri(run.uri)
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    # Not `log_model` within `start_run`: it would set the run FINISHED when it leaves it.
    logged = Model.log(
        artifact_path=None,
        name="generator",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={"pipeline": str(entry.pipeline)},
        model_config=entry.arguments,
        signature=_signature(entry),
        input_example=_input_example(entry.condition),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
    )
    own = {GENERATOR_TAG: entry.sha256, RUN_KEY_TAG: run.key}
    tags = {name: neutral(value) for name, value in entry.tags.items()} | own
    registered = mlflow.register_model(logged.model_uri, entry.name, await_registration_for=300, tags=tags)
    card = _card(entry, str(registered.version))
    client.update_model_version(entry.name, registered.version, card)
    if not client.get_registered_model(entry.name).description:  # a person's own stays
        client.update_registered_model(entry.name, card)
    return str(registered.version)


def _card(entry: RegistryEntry, model_version: str) -> str:
    """The model card as MLflow's page shows it: without the fields for the hub, and with the version's own picture."""
    text = _FIELDS.sub("", (entry.pipeline / "README.md").read_text("utf-8"))
    path = f"artifacts/{entry.pipeline.name}/{PICTURE}"
    # Relative: a server is known by more than one address, and may be below a path.
    picture = "model-versions/get-artifact?" + urlencode({"name": entry.name, "version": model_version, "path": path})
    return neutral(text.replace(f"]({PICTURE})", f"]({picture})").strip()[:LONGEST_DESCRIPTION], "\n")


def _make_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if "already taken by a prompt" in str(error):  # which has the same code
            raise BadInputError(
                f"spec.tracking.registeredModel: {name} is the name of a prompt there; choose another one"
            ) from error
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _input_example(condition: str | None) -> Any:
    import pandas as pd

    columns: dict[str, Any] = {"seed": [0, 1]}
    if condition is not None:
        columns[condition] = [3, 7] if condition == "class_label" else ["a red apple", "a blue boat"]
    return pd.DataFrame(columns)


def _signature(entry: RegistryEntry) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    condition = entry.condition
    inputs = [ColSpec(DataType.long, "seed", required=condition is None)]
    if condition is not None:
        inputs.append(ColSpec(DataType.long if condition == "class_label" else DataType.string, condition))
    params = [
        ParamSpec("seed", DataType.long, None),
        ParamSpec("steps", DataType.long, entry.arguments["num_inference_steps"]),
    ]
    return ModelSignature(
        inputs=Schema(inputs), outputs=Schema([ColSpec(DataType.string, "png")]), params=ParamSchema(params)
    )
