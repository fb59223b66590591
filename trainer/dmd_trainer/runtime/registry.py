"""`models:/`: a registered model's files as a local folder."""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.parsing import parse_yaml, read_yaml_text
from dmd_api.paths import below
from dmd_trainer.runtime.sources import check_source
from dmd_trainer.tracking.client import import_mlflow, mlflow_client

VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own."""
_ALIASED = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/]+)(?P<path>/.*)?")


def use_registry(uri: str) -> None:
    """Lets this process, and those that it starts, read `models:/` from the MLflow server at `uri`.

    MLflow is not imported for it: most processes read no registered model.
    """
    os.environ[VARIABLE] = uri


def from_registry(uri: str, scratch: Path) -> Path:
    """What a `models:/` URI names, downloaded below `scratch`; of a generator that was registered here, its pipeline.

    Args:
        uri: e.g. `models:/sd@champion`, `models:/sd/3`, `models:/sd/3/unet`.
        scratch: where downloads go; processes may share it.

    Raises:
        BadInputError: the registry has no such model, or does not answer.
    """
    mlflow = import_mlflow()
    server = os.environ.get(VARIABLE) or mlflow.get_tracking_uri()
    try:
        pinned = _pinned(uri, server)
        # Named by version, since an alias moves, and by registry, since others have models of the same names.
        digest = hashlib.sha256(f"{server} {pinned}".encode()).hexdigest()[:16]
        folder = scratch / "fetched" / f"registered-{digest}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=folder.parent))
            mlflow.artifacts.download_artifacts(pinned, dst_path=str(part), tracking_uri=server, registry_uri=server)
            _place(part, folder)
    except mlflow.exceptions.MlflowException as error:
        raise BadInputError(f"{uri}: {error.message}; check the name and spec.tracking.uri") from error
    path = pinned.split("/", 3)[3:]
    named = below(folder, path[0], uri) if path else folder
    return registered_pipeline(named, uri)[0] if (named / "MLmodel").is_file() else named


def registered_pipeline(folder: Path, uri: str) -> tuple[Path, dict[str, Any]]:
    """The pipeline inside of a registered model's folder, and the arguments that it is called with.

    Args:
        folder: what MLflow downloaded.
        uri: the model's, for messages.

    Raises:
        BadInputError: it is no generator that was registered here, or a link in it leads elsewhere.
    """
    check_source(folder, uri)
    with (folder / "MLmodel").open("rb") as file:
        (described,) = parse_yaml(read_yaml_text(file, f"{uri}: MLmodel"), f"{uri}: MLmodel")
    try:
        flavor = described["flavors"]["python_function"]
        path, arguments = flavor["artifacts"]["pipeline"]["path"], flavor.get("config") or {}
        return below(folder, path, f"{uri}: MLmodel"), arguments
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{uri}: is not a generator that dmd-operator registered") from error


def _pinned(uri: str, server: str) -> str:
    """The URI with the version that its alias is now."""
    found = _ALIASED.fullmatch(uri)
    if found is None:
        return uri
    version = mlflow_client(server).get_model_version_by_alias(found["name"], found["alias"]).version
    return f"models:/{found['name']}/{version}{found['path'] or ''}"


def _place(part: Path, folder: Path) -> None:
    """Moves a whole download to where it is looked for, unless another process has been there first."""
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(part)
