"""The examples of docs/serving.md before a real API server, which refuses unknown fields and unsafe pods."""

from pathlib import Path

import yaml

from tests.cluster.binaries import module
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import GivenCluster
from tests.operator.live import eventually, make_namespace

EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"
NAMESPACE = "serving"


def test_the_deployment_and_its_service_are_accepted(api: ControlPlane | GivenCluster) -> None:
    make_namespace(api.kubectl, NAMESPACE)
    path = EXAMPLES / "deployment.yaml"
    strict = ("apply", "--validate=strict", "--dry-run=server", "-n", NAMESPACE)
    assert "serve-digits" in api.kubectl(*strict, "-f", str(path))
    # Of a Deployment that breaks the standard the API server only warns; of its pod it says so.
    deployment, _ = yaml.safe_load_all(path.read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": deployment["spec"]["template"]["spec"]}
    assert "created" in api.kubectl(*strict, "-f", "-", text=yaml.safe_dump(pod))


def test_the_inference_service_is_accepted_by_kserves_api(api: ControlPlane | GivenCluster) -> None:
    make_namespace(api.kubectl, NAMESPACE)
    crd = module("kserve", "github.com/kserve/kserve") / "config/crd/full/serving.kserve.io_inferenceservices.yaml"
    api.kubectl("apply", "--server-side", "-f", str(crd))
    try:
        path = str(EXAMPLES / "kserve.yaml")
        strict = ("apply", "--validate=strict", "--dry-run=server", "-n", NAMESPACE, "-f", path)
        assert "digits-onestep" in eventually(lambda: api.kubectl(*strict), "KServe's API is served and accepts it", 60)
    finally:
        api.kubectl("delete", "-f", str(crd), "--wait=false")
