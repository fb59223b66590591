"""Finds a generator by what a user calls it, and loads it without running code that comes with it"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.text import neutral
from dmd_api.uris import masked
from dmdctl.local.run import RUNS

REGISTERED = "models:/"
HUB = "hf://"


@dataclass(frozen=True)
class Found:
    """A generator's pipeline.

    Attributes:
        model: as the user named it.
        folder: in diffusers format.
        arguments: what the pipeline is called with.
        version: of a registered model, otherwise None.
    """

    model: str
    folder: Path
    arguments: dict[str, Any]
    version: str | None = None

    @property
    def title(self) -> str:
        """Its name as others may see it: of a folder the last part alone."""
        return neutral(self.model if ":/" in self.model else self.folder.resolve().name)


class Generator:
    """The pyfunc's own class over a pipeline: the same code answers here and behind `mlflow models serve`.

    Args:
        found: the pipeline.

    Raises:
        BadInputError: it cannot be loaded, or is not made of known classes.
    """

    def __init__(self, found: Found) -> None:
        from dmd_trainer.families.pipelines import load_pipeline
        from dmd_trainer.publishing.pyfunc import GeneratorModel, weights_dtype

        self.found = found
        self._model = GeneratorModel()
        self.dtype = weights_dtype(found.folder)
        self._model.use(load_pipeline(found.folder, torch_dtype=self.dtype), found.arguments)
        self.pipeline, self.arguments = self._model.pipeline, self._model.arguments
        self.takes_text: bool = self._model.takes_text
        self.classes: int | None = self._model.classes
        self.steps: range = self._model.steps

    @property
    def network(self) -> Any:
        """The module that is called once a step."""
        return self.pipeline.components.get("unet") or self.pipeline.components["transformer"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the noise."""
        config = self.network.config
        size = config.sample_size
        return (config.in_channels, *((size, size) if isinstance(size, int) else size))

    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        steps: int | None = None,
    ) -> list[Any]:
        """An image (PIL) for each seed, and its label or prompt."""
        return self._model.draw(seeds, labels, prompts, steps)


def find_generator(model: str, tracking: str | None, downloads: Path | None = None) -> Found:
    """The pipeline that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `hf://OWNER/NAME` or a folder is.

    Args:
        model: what the user calls it.
        tracking: the MLflow server of a registered model; None: the environment's, or the database below `dmd-runs`.
        downloads: where a registered model goes; None: where MLflow puts it, which may be where it is.

    Raises:
        BadInputError: there is none.
        InfrastructureError: the hub does not answer.
    """
    if model.startswith(REGISTERED):
        return _registered(model, tracking, downloads)
    if model.startswith(HUB):
        from dmd_trainer.runtime.fetch import local_path

        with tempfile.TemporaryDirectory() as unused:  # the hub has a cache of its own
            return _in_folder(model, local_path(model, Path(unused)))
    return _in_folder(model, Path(model))


def registry_uri(model: str, tracking: str | None) -> str:
    """The MLflow server that has a registered model.

    Raises:
        BadInputError: none is named, and there is no database here.
    """
    database = RUNS.absolute() / "mlflow.db"
    uri = tracking or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
    if uri == f"sqlite:///{database}" and not database.exists():
        raise BadInputError(f"{model}: no registry here ({database} is missing); give --tracking URI")
    return uri


def pinned(model: str, tracking: str | None) -> str:
    """`models:/NAME/VERSION` for the version that `models:/NAME@ALIAS` is now; anything else as it is.

    Raises:
        BadInputError: there is no such alias, or the registry does not answer.
    """
    from dmd_trainer.tracking.client import mlflow_client

    name, at, alias = model.removeprefix(REGISTERED).rpartition("@")
    if not (model.startswith(REGISTERED) and at):
        return model
    uri = registry_uri(model, tracking)
    with _asking_registry(model, uri):
        return f"{REGISTERED}{name}/{mlflow_client(uri).get_model_version_by_alias(name, alias).version}"


def manifest_of(found: Found, tracking: str | None) -> str | None:
    """The manifest, as JSON, of the run that a registered generator came from; None where there is none.

    Raises:
        BadInputError: the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    from dmd_trainer.tracking.client import mlflow_client

    if found.version is None:
        return None
    uri = registry_uri(found.model, tracking)
    path = found.model.removeprefix(REGISTERED)
    name = path.rpartition("@")[0] or path.rpartition("/")[0]
    with _asking_registry(found.model, uri), tempfile.TemporaryDirectory() as folder:
        client = mlflow_client(uri)
        run = client.get_model_version(name, found.version).run_id
        try:
            return Path(client.download_artifacts(run, "manifest.json", folder)).read_text("utf-8")
        except (MlflowException, OSError, ValueError):
            return None


def _in_folder(model: str, folder: Path) -> Found:
    from dmd_trainer.families.pipelines import read_index
    from dmd_trainer.publishing.export import call_arguments, exported_steps
    from dmd_trainer.runtime.sources import check_source

    if not (folder / "model_index.json").exists():
        raise BadInputError(
            f"{model}: is no diffusers pipeline's folder; give one, hf://OWNER/NAME, or models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    check_source(folder, model)
    return Found(model, folder, call_arguments(read_index(folder)["_class_name"], exported_steps(folder)))


def _registered(model: str, tracking: str | None, downloads: Path | None) -> Found:
    import mlflow

    from dmd_trainer.runtime.registry import registered_pipeline

    uri = registry_uri(model, tracking)
    version = pinned(model, tracking)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with _asking_registry(model, uri):
        place = {} if downloads is None else {"dst_path": str(downloads)}
        local = Path(mlflow.artifacts.download_artifacts(version, **place))
    found = registered_pipeline(local, model)
    if found is None:
        raise BadInputError(f"{model}: is not a generator that dmd-operator registered")
    return Found(model, *found, version.rpartition("/")[2])


@contextmanager
def _asking_registry(model: str, uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(
            masked(f"{model}: cannot be loaded from {uri} ({reason}); check the name and --tracking")
        ) from error
