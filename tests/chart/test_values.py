"""The chart's values: described, typed, refused when they are wrong, and the same as the operator's own settings."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dmd_api import __version__
from dmd_api.defaults import Defaults
from dmd_operator.settings import OperatorSettings
from tests.chart.helm import CHART, helm, only, render, template
from tests.cluster.processes import ClusterError

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Settings that are no matter of taste: the chart knows them, or the pod's name says them.
OWN = {"namespaces", "defaults", "lease_name", "lease_namespace", "identity", "port", "progress_from"}


def leaves(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}")
    else:
        yield path[1:]


def fields(model: type[BaseModel]) -> Iterator[str]:
    """The model's fields in YAML's spelling, those of the models inside with their path."""
    for field in model.model_fields.values():
        inner = next((t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(t)), None)
        if inner is None:
            yield str(field.alias)
        else:
            yield from (f"{field.alias}.{name}" for name in fields(inner))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def settings(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> OperatorSettings:
    """What the operator reads from the environment that the chart gives it."""
    deployment = only(render(values), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "from-the-pod"))
    return OperatorSettings()


def test_every_value_is_described() -> None:
    table = (CHART / "README.md").read_text()
    described = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    for leaf in leaves(VALUES):
        assert any(leaf == path or leaf.startswith(f"{path}.") for path in described), leaf


def test_the_schema_types_every_value() -> None:
    def check(node: dict[str, Any], values: dict[str, Any], path: str) -> None:
        assert node["additionalProperties"] is False, path
        assert node["properties"].keys() - {"global"} == values.keys(), path
        for name, value in values.items():
            if "properties" in (child := node["properties"][name]):
                check(child, value, f"{path}.{name}")

    # What Kubernetes types is left to it.
    check(SCHEMA, VALUES, "")


def test_defaults_are_the_fields_of_the_api() -> None:
    assert set(leaves(VALUES["defaults"])) == set(fields(Defaults))


def test_settings_are_those_of_the_operator() -> None:
    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(map(str.capitalize, rest))

    own = {name: field for name, field in OperatorSettings.model_fields.items() if name not in OWN}
    assert VALUES["settings"] == {camel(name): field.default for name, field in own.items()}
    assert VALUES["metrics"]["port"] == OperatorSettings.model_fields["port"].default


def test_the_operator_reads_what_the_chart_says(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "watchNamespaces": ["team-a", "team-b"],
        "defaults": {
            "storage": {
                "uri": "s3://models/dmd",
                "endpointUrl": "http://s3:8333",
                "credentialsSecretRef": {"name": "s3"},
                "retain": {"checkpoints": True},
            },
            "tracking": {"uri": "http://mlflow:5000", "credentialsSecretRef": {"name": "mlflow"}},
            "caBundle": {"configMapKeyRef": {"name": "company-ca", "key": "bundle.pem"}},
            "images": {"trainer": "registry.example/trainer:2"},
        },
        "settings": {"stallMinutes": 1.5, "leaseSeconds": 60, "debug": True, "concurrentRequests": 1000},
        "metrics": {"port": 9090},
    }
    read = settings(values, monkeypatch)
    assert read.namespaces == ("team-a", "team-b")
    assert read.defaults.model_dump(by_alias=True) == {
        **values["defaults"],
        "storage": {**values["defaults"]["storage"], "retain": {"pairs": True, "checkpoints": True}},
    }
    assert (read.stall_minutes, read.lease_seconds, read.debug) == (1.5, 60, True)
    assert (read.concurrent_requests, read.port) == (1000, 9090)
    assert read.lease_namespace is not None


def test_what_is_not_set_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings({}, monkeypatch)
    assert read.namespaces == ()
    assert read.defaults.storage is None
    assert read.defaults.tracking.uri is None
    assert read.defaults.tracking.credentials_secret_ref is None
    assert read.defaults.ca_bundle is None
    assert str(read.defaults.images.trainer).endswith(f"/dmd-trainer:{__version__}")


def test_the_chart_runs_its_own_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize(
    ("values", "where", "why"),
    [
        ({"replicas": 2}, "replicas", "not allowed"),
        ({"image": {"version": "1"}}, "version", "not allowed"),
        ({"replicaCount": "two"}, "/replicaCount", "want integer"),
        ({"replicaCount": -1}, "/replicaCount", "minimum"),
        ({"crds": {"keep": "yes"}}, "/crds/keep", "want boolean"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "must be one of"),
        ({"image": {"digest": "abc"}}, "/image/digest", "pattern"),
        ({"watchNamespaces": "team"}, "/watchNamespaces", "want array"),
        ({"watchNamespaces": ["Team"]}, "/watchNamespaces/0", "pattern"),
        ({"watchNamespaces": ["team", "team"]}, "/watchNamespaces", "equal"),
        ({"defaults": {"storage": {"uri": "gs://bucket"}}}, "/defaults/storage/uri", "pattern"),
        ({"defaults": {"tracking": {"uri": "mlflow:5000"}}}, "/defaults/tracking/uri", "pattern"),
        ({"defaults": {"tracking": {"uri": "https://user:password@mlflow"}}}, "/defaults/tracking/uri", "pattern"),
        ({"defaults": {"storage": {"uri": "s3://key:secret@bucket"}}}, "/defaults/storage/uri", "pattern"),
        ({"settings": {"leaseSeconds": 1}}, "/settings/leaseSeconds", "minimum"),
        ({"settings": {"stallMinutes": 0}}, "/settings/stallMinutes", "exclusiveMinimum"),
        ({"podLabels": {"critical": True}}, "/podLabels/critical", "want string"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable", "minimum"),
        ({"metrics": {"port": 80}}, "/metrics/port", "minimum"),
        ({"serviceMonitor": {"interval": "often"}}, "/serviceMonitor/interval", "pattern"),
        ({"serviceMonitor": {"enabled": True}, "metrics": {"service": {"enabled": False}}}, "serviceMonitor", "needs"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name", "name the one to use"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_with_their_place(values: dict[str, Any], where: str, why: str) -> None:
    with pytest.raises(ClusterError) as refused:
        template(values)
    assert where in str(refused.value)
    assert why in str(refused.value)


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)
