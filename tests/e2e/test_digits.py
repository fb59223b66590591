"""The whole job, as a user sees it: helm install, kubectl apply, kubectl wait, and a model that draws digits."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.chart.helm import helm
from tests.cluster import binaries
from tests.e2e.stack import ROOT, SYSTEM, TEAM, Stack, on_this_machine
from tests.operator.live import eventually, is_true, status
from tests.servers import SECRET_KEY

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]

NAME = "distill-digits"
SHORTER: dict[str, dict[str, Any]] = {
    "training": {"generatorUpdates": 300},
    "evaluation": {"samples": 2000, "every": 150},
}
"""The example takes minutes of two free cores; a fifth of its training is enough to draw digits."""
GATES = [{"metric": "FID", "max": 1.0}, {"metric": "Accuracy", "min": 0.9}]
DELETED_WITH_IT = "jobs,pods,services"


@pytest.fixture(scope="module")
def complete(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's run, shortened, complete; the folder with what kubectl and dmdctl showed meanwhile."""
    manifest = yaml.safe_load((ROOT / "examples" / "distill-digits.yaml").read_text())
    for part, fields in SHORTER.items():
        manifest["spec"][part] |= fields
    manifest["spec"]["method"]["regression"]["pairs"] = 2048
    manifest["spec"]["gates"] = GATES
    manifest["spec"]["caBundle"] = {"configMapKeyRef": {"name": "kube-root-ca.crt"}}  # every namespace has one
    manifest["metadata"]["namespace"] = TEAM
    stack.kubectl.apply(on_this_machine(manifest))
    folder = tmp_path_factory.mktemp("shown")
    kubeconfig = str(stack.cluster.kubeconfig)
    get = [str(binaries.kubectl()), "--kubeconfig", kubeconfig, "get", "dmd", NAME, "-n", TEAM, "-w"]
    watch = [str(Path(sys.executable).with_name("dmdctl")), "watch", NAME, "-n", TEAM]
    with (folder / "get").open("wb") as got, (folder / "watch").open("wb") as watched:
        getting = subprocess.Popen(get, stdout=got)
        watching = subprocess.Popen(
            watch, stdout=watched, stderr=subprocess.STDOUT, env={"KUBECONFIG": kubeconfig, "COLUMNS": "120"}
        )
        try:
            stack.kubectl("wait", "--for=condition=Complete", f"dmd/{NAME}", "-n", TEAM, "--timeout=20m", timeout=1300)
            assert watching.wait(60) == 0, (folder / "watch").read_text()
        finally:
            for process in (getting, watching):
                process.kill()
                process.wait(10)
    return folder


def test_it_is_complete_and_its_gates_passed(stack: Stack, complete: Path) -> None:
    found = status(stack.kubectl, NAME, TEAM)
    for kind in ("PreflightPassed", "Prepared", "Distilled", "Evaluated", "GatesPassed", "Registered", "Complete"):
        assert is_true(found, kind), found
    report = stack.report(NAME)
    assert report["fid"]["generator"] < GATES[0]["max"] < report["fid"]["initial"]
    assert found["modelUri"] == "models:/digits-onestep/1"
    assert found["mlflowRunUrl"].startswith(stack.pod_mlflow_url)


def test_helms_own_test_passes(stack: Stack) -> None:
    told = helm("test", "dmd-operator", "--namespace", SYSTEM, "--logs", kubeconfig=stack.cluster.kubeconfig)
    assert "readyz 200" in told


def test_its_model_is_registered_loads_and_draws(stack: Stack, complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient(stack.mlflow.url)
    version = client.get_model_version_by_alias("digits-onestep", "champion")
    assert version.version == "1"
    assert version.status == "READY"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow.url)
    mlflow.set_tracking_uri(stack.mlflow.url)
    model = mlflow.pyfunc.load_model("models:/digits-onestep@champion")
    drawn = model.predict(pd.DataFrame({"seed": [0, 1, 2], "class_label": [3, 7, 3]}))
    images = [np.asarray(Image.open(io.BytesIO(_bytes(png)))) for png in np.asarray(drawn).ravel()]
    assert len(images) == 3
    assert not np.array_equal(images[0], images[2]), "seeds differ"
    assert all(image.std() > 10 for image in images)


def _bytes(png: object) -> bytes:
    import base64

    return base64.b64decode(png) if isinstance(png, str) else bytes(png)  # type: ignore[call-overload]


def test_kubectl_and_dmdctl_showed_it(stack: Stack, complete: Path) -> None:
    rows = (complete / "get").read_text()
    assert rows.splitlines()[0].split()[:6] == ["NAME", "PHASE", "STEP", "PROGRESS", "ETA", "FID"]
    for phase in ("Preflight", "Preparing", "Distilling", "Evaluating", "Complete"):
        assert phase in rows
    steps = {int(step) for step in re.findall(r"Distilling +(\d+)", rows)}
    assert len(steps) > 5
    watched = (complete / "watch").read_text()
    assert "generator updates" in watched
    assert "digits-onestep" in watched


def test_no_secret_is_seen_anywhere(stack: Stack, complete: Path) -> None:
    everything = ("dmd,jobs,pods,services,configmaps", "events.events.k8s.io")
    texts = [stack.kubectl("get", kinds, "-A", "-o", "yaml") for kinds in everything]
    for namespace in (SYSTEM, TEAM):
        for pod in stack.kubectl.get("pods", "-n", namespace)["items"]:
            texts.append(stack.kubectl("logs", pod["metadata"]["name"], "-n", namespace))
            assert namespace == SYSTEM or "serviceaccount" not in str(pod["spec"].get("volumes"))
    for secret in (SECRET_KEY, "not-to-be-seen"):
        assert not [text for text in texts if secret in text]


def test_deleting_it_removes_every_child(stack: Stack, complete: Path) -> None:
    labels = ("-n", TEAM, "-l", f"dmd-operator.io/distillation={NAME}")
    assert stack.kubectl.get(DELETED_WITH_IT, *labels)["items"]
    stack.kubectl("delete", "dmd", NAME, "-n", TEAM, "--timeout=60s")
    eventually(lambda: not stack.kubectl.get(DELETED_WITH_IT, *labels)["items"], "no children", 120)
    assert stack.s3().list_objects_v2(Bucket="models", Prefix=f"runs/{NAME}-")["KeyCount"], "its results stay"
