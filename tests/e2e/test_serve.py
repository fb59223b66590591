"""The Deployment of examples/serve for real: it answers a request from a pod, and follows the alias."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, call_arguments, export_pipeline
from dmd_trainer.publishing.registry import RegistryEntry, register_generator, set_alias
from dmd_trainer.runtime.fetch import ASSETS
from dmd_trainer.tracking.client import TrackedRun
from tests.cluster import images
from tests.e2e.stack import PACKAGES, ROOT, SOURCES, TEAM, Stack
from tests.operator.live import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

NAME, MODEL, TOKEN = "serve-digits", "digits-onestep", "0123456789abcdef0123456789abcdef"
FOLDERS = ("crds", "trainer", "cli")
ENTRY = ["python", "-c", "from dmdctl.main import main; main()"]
ASK = f"""
import json, urllib.request
request = urllib.request.Request(
    "http://{NAME}/v1/images", b'{{"class_label": 3, "seed": 5}}',
    {{"Content-Type": "application/json", "Authorization": "Bearer {TOKEN}"}})
print(json.dumps(json.load(urllib.request.urlopen(request, timeout=30))))
"""


def register(stack: Stack, folder: Path, key: str) -> str:
    """A version of the digits teacher's own network, as a generator."""
    teacher = load_teacher(ASSETS / "digits-teacher")
    timesteps = [len(teacher.denoiser.schedule) - 1]
    weights = teacher.denoiser.network.state_dict()
    export_pipeline(teacher, weights, timesteps, folder, CardFacts("x", "builtin://digits-teacher", "DMD", "a", "1"))
    entry = RegistryEntry(MODEL, folder, call_arguments("ConsistencyModelPipeline"), "class_label", key, {})
    return register_generator(TrackedRun(stack.mlflow.url, "serving", key, key), entry).model_version


def on_this_machine(stack: Stack) -> list[dict[str, Any]]:
    """The example's objects, with the trainer and its libraries from this machine instead of from its image."""
    text = (ROOT / "examples" / "serve" / "deployment.yaml").read_text()
    deployment, service = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["image"], container["imagePullPolicy"] = images.base_name(), "Never"
    assert container["command"][0] == "dmdctl"
    container["command"] = [*ENTRY, *container["command"][1:]]
    for variable in container["env"]:
        if variable["name"] == "MLFLOW_TRACKING_URI":
            variable["value"] = stack.pod_mlflow_url
    path = ":".join([*(f"{SOURCES}/{folder}" for folder in FOLDERS), PACKAGES])
    container["env"] += [{"name": "PYTHONPATH", "value": path}, {"name": "HOME", "value": "/tmp"}]
    container["resources"] = {}
    pod["securityContext"]["runAsUser"] = 1000
    container["volumeMounts"] += [
        {"name": "packages", "mountPath": PACKAGES, "readOnly": True},
        *(
            {"name": "sources", "mountPath": f"{SOURCES}/{folder}", "subPath": folder, "readOnly": True}
            for folder in FOLDERS
        ),
    ]
    pod["volumes"] += [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("packages", "sources")]
    for one in (deployment, service):
        one["metadata"]["namespace"] = TEAM
    return [deployment, service]


def asking_pod() -> dict[str, Any]:
    """Another pod, which asks by the Service's name."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "asking", "namespace": TEAM},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "asking",
                    "image": images.base_name(),
                    "imagePullPolicy": "Never",
                    "command": ["sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def test_the_example_serves_and_follows_the_alias(stack: Stack, tmp_path: Path) -> None:
    first, second = (register(stack, tmp_path / key, key) for key in ("one", "two"))
    set_alias(stack.mlflow.url, MODEL, "champion", first)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "serve-token", "namespace": TEAM},
        "stringData": {"token": TOKEN},
    }
    stack.kubectl.apply(secret, asking_pod(), *on_this_machine(stack))
    try:
        stack.kubectl("rollout", "status", f"deployment/{NAME}", "-n", TEAM, "--timeout=5m", timeout=310)
        stack.kubectl("wait", "--for=condition=Ready", "pod/asking", "-n", TEAM, "--timeout=2m", timeout=130)

        def answer() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(stack.kubectl("exec", "asking", "-n", TEAM, "--", "python", "-c", ASK))
            return found

        before = eventually(answer, "an answer through the Service", 60)
        assert before["version"] == first
        assert before["images"][0]["png"]
        pods = stack.kubectl.get("pods", "-n", TEAM, "-l", f"app.kubernetes.io/name={NAME}")["items"]
        set_alias(stack.mlflow.url, MODEL, "champion", second)
        eventually(lambda: answer()["version"] == second, "the version that the alias moved to", 120)
        (pod,) = stack.kubectl.get("pods", "-n", TEAM, "-l", f"app.kubernetes.io/name={NAME}")["items"]
        assert [one["metadata"]["uid"] for one in pods] == [pod["metadata"]["uid"]]
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    finally:
        stack.kubectl("delete", "pod/asking", f"deployment/{NAME}", f"service/{NAME}", "-n", TEAM, "--grace-period=1")
