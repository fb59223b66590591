"""`models:/`: a registered model's files as a local folder."""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.parsing import parse_yaml, read_yaml_text
from dmd_api.paths import below
from dmd_trainer.runtime.sources import check_source
from dmd_trainer.tracking.client import ask, import_mlflow, mlflow_client

VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own."""
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a model or version, and for an alias, that a registry does not have."""
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
        BadInputError: the registry has no such model.
        InfrastructureError: it does not answer.
    """
    server = os.environ.get(VARIABLE) or import_mlflow().get_tracking_uri()
    pinned, folder = ask(server, lambda: _download(uri, server, scratch / "fetched"))
    path = pinned.split("/", 3)[3:]
    named = below(folder, path[0], uri) if path else folder
    found = registered_pipeline(named, uri) if (named / "MLmodel").is_file() else None
    return named if found is None else found[0]


def _download(uri: str, server: str, downloads: Path) -> tuple[str, Path]:
    """The URI with its version, and the folder that it is in."""
    mlflow = import_mlflow()
    try:
        pinned = _pinned(uri, server)
        # Named by version, since an alias moves, and by registry, since others have models of the same names.
        folder = downloads / f"registered-{hashlib.sha256(f'{server} {pinned}'.encode()).hexdigest()[:16]}"
        if not folder.exists():
            downloads.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=downloads) as temporary:
                part = Path(temporary) / "whole"
                part.mkdir()
                mlflow.artifacts.download_artifacts(
                    pinned, dst_path=str(part), tracking_uri=server, registry_uri=server
                )
                _place(part, folder)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in NOT_THERE:
            raise BadInputError(f"{uri}: {error.message}; check the name and spec.tracking.uri") from error
        raise
    return pinned, folder


def registered_pipeline(folder: Path, uri: str) -> tuple[Path, dict[str, Any]] | None:
    """The pipeline in a registered model's folder and the arguments that it is called with; None in other models.

    Args:
        folder: what MLflow downloaded.
        uri: the model's, for messages.

    Raises:
        BadInputError: its description cannot be read, or leads elsewhere.
    """
    check_source(folder, uri)
    with (folder / "MLmodel").open("rb") as file:
        (described,) = parse_yaml(read_yaml_text(file, f"{uri}: MLmodel"), f"{uri}: MLmodel")
    try:
        flavor = described["flavors"]["python_function"]
        path, arguments = flavor["artifacts"]["pipeline"]["path"], flavor.get("config") or {}
        return below(folder, path, f"{uri}: MLmodel"), arguments
    except (KeyError, TypeError, AttributeError):
        return None


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
