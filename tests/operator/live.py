"""What tests of a running operator share: manifests, namespaces, and waiting."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import ClusterError

CRD = Path(__file__).parents[2] / "crds" / "dmddistillations.dmd-operator.io.yaml"
DEADLINE = 90.0

T = TypeVar("T")


def manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A small distillation of two workers, as a user writes it."""
    return {
        "apiVersion": "dmd-operator.io/v1alpha1",
        "kind": "DMDDistillation",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "teacher": {"uri": "builtin://digits-teacher"},
            "data": {"classLabels": {"count": 10}},
            "method": {"regression": {"pairs": 8}},
            "training": {"generatorUpdates": 600, "batchSize": 8, "learningRate": 1e-4},
            "workers": {"nodes": 2},
            "storage": {"uri": "s3://bucket/runs"},
            "tracking": {"uri": "http://mlflow:5000"},
            "images": {"trainer": "trainer:1"},
            **spec,
        },
    }


def install_crd(kubectl: Kubectl) -> None:
    """The CRD, served when this returns."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    established = ("--for=condition=Established", "crd/dmddistillations.dmd-operator.io", "--timeout=60s")
    eventually(lambda: kubectl("wait", *established), "the CRD is served")  # it has no conditions at first


def make_namespace(kubectl: Kubectl, name: str) -> None:
    """A namespace that enforces the restricted Pod Security Standard, with what pods need to be made."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    eventually(lambda: exists(kubectl, "serviceaccount", "default", name), f"{name} has its service account")


def exists(kubectl: Kubectl, kind: str, name: str, namespace: str) -> bool:
    return bool(kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "name").strip())


def status(kubectl: Kubectl, name: str, namespace: str) -> dict[str, Any]:
    """The resource's status, empty where there is none yet."""
    return kubectl.get("dmd", name, "-n", namespace).get("status", {})


def wait_until_complete(kubectl: Kubectl, name: str, namespace: str, seconds: int = 100) -> None:
    """`kubectl wait`, as a user would, from the moment that there is a status."""
    eventually(lambda: status(kubectl, name, namespace), f"{name} has a status")
    kubectl(
        "wait",
        "--for=condition=Complete",
        f"dmd/{name}",
        "-n",
        namespace,
        f"--timeout={seconds}s",
        timeout=seconds + 20,
    )


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of a status, empty where it is not there."""
    return next((c for c in found.get("conditions", []) if c["type"] == kind), {})


def is_true(found: dict[str, Any], kind: str) -> bool:
    return condition(found, kind).get("status") == "True"


def events(kubectl: Kubectl, name: str, namespace: str) -> Iterator[tuple[str, str]]:
    """Reasons and messages of the resource's events, oldest first."""
    found = kubectl.get("events.events.k8s.io", "-n", namespace, "--field-selector", f"regarding.name={name}")
    for event in sorted(found["items"], key=lambda event: event["eventTime"] or ""):
        yield event["reason"], event["note"]


def eventually(look: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """The first true value of `look`."""
    until = time.monotonic() + deadline
    while True:
        try:
            if found := look():
                return found
            last = repr(found)
        except ClusterError as error:  # an API server that restarts, an object that is not there yet
            last = str(error)
        assert time.monotonic() < until, f"{what}: not within {deadline:.0f} s; last: {last}"
        time.sleep(0.1)


def describe(found: dict[str, Any]) -> str:
    return yaml.safe_dump(found)
