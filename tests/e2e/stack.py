"""All that a company would have: a cluster, an S3 server, an MLflow server, and the operator, installed by Helm."""

import json
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml

from dmdctl.local.local_runner import free_port
from tests.chart.helm import CHART, helm
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.operator.live import make_namespace
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, failing_proxy, start_mlflow, start_s3

ROOT = Path(__file__).parents[2]
SYSTEM, TEAM = "dmd-system", "team"
OPERATOR_IMAGE = "docker.io/local/dmd-operator:test"
BUCKET = "models"
PACKAGES = "/opt/packages"
SOURCES = "/opt/sources"


@dataclass
class Stack:
    """Where everything is.

    Attributes:
        cluster: with the operator in it.
        s3_url: for the tests themselves; pods go through the proxy.
        mlflow_url: for the tests themselves.
        pod_mlflow_url: for pods.
        folder: MLflow's and S3's data.
        s3_away: while set, S3 answers 503 to pods.
        s3_delay: for so many seconds pods wait for each of S3's answers. A checkpoint is waited for before the next one
            is written, so that training takes its time and costs none of the machine's.
    """

    cluster: Cluster
    s3_url: str
    mlflow: Server
    pod_s3_url: str
    pod_mlflow_url: str
    folder: Path
    s3_away: bool = field(default=False)
    s3_delay: float = field(default=0.0)

    @property
    def kubectl(self) -> Any:
        return self.cluster.kubectl

    def s3(self) -> Any:
        """A client of the S3 server."""
        return boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def report(self, name: str) -> dict[str, Any]:
        """The `report.json` of a finished run."""
        uid = self.kubectl.get("dmd", name, "-n", TEAM)["metadata"]["uid"]
        key = f"runs/{name}-{uid}/report.json"
        report: dict[str, Any] = json.loads(self.s3().get_object(Bucket=BUCKET, Key=key)["Body"].read())
        return report

    def s3_fails(self) -> bool:
        """Whether S3's answer to a pod is 503; asked at each of its requests, and slow where S3 is."""
        time.sleep(self.s3_delay)
        return self.s3_away

    def stop_mlflow(self) -> None:
        self.mlflow.stop()

    def start_mlflow(self) -> None:
        """Starts it again where it was, with what it knew."""
        port = int(self.mlflow.url.rpartition(":")[2])
        self.mlflow = start_mlflow(self.folder / "mlflow", port, also_known_as=self.pod_mlflow_url)


@contextmanager
def bring_up(cluster: Cluster, folder: Path) -> Iterator[Stack]:
    """The stack, for as long as the context lasts; the cluster is somebody else's."""
    with ExitStack() as stack:
        s3 = start_s3(folder / "s3", free_port())
        stack.callback(s3.stop)
        running: list[Stack] = []
        proxy, _ = stack.enter_context(failing_proxy(s3.url, lambda _: running[0].s3_fails()))
        mlflow_port = free_port()
        pod_mlflow = f"http://{cluster.expose(mlflow_port)}"
        mlflow = start_mlflow(folder / "mlflow", mlflow_port, also_known_as=pod_mlflow)
        pod_s3 = f"http://{cluster.expose(int(proxy.rpartition(':')[2]))}"
        running.append(Stack(cluster, s3.url, mlflow, pod_s3, pod_mlflow, folder))
        stack.callback(lambda: running[0].mlflow.stop())
        running[0].s3().create_bucket(Bucket=BUCKET)
        _load_images(cluster)
        for namespace in (SYSTEM, TEAM):
            make_namespace(cluster.kubectl, namespace)
        cluster.kubectl.apply(*_for_trainers())
        install(running[0])
        yield running[0]


def install(stack: Stack, *options: str) -> None:
    """`helm install`, as an operator of clusters would."""
    values = {
        "image": {"repository": OPERATOR_IMAGE.partition(":")[0], "tag": "test", "pullPolicy": "Never"},
        "defaults": {
            "storage": {
                "uri": f"s3://{BUCKET}/runs",
                "endpointUrl": stack.pod_s3_url,
                "credentialsSecretRef": {"name": "s3"},
            },
            "tracking": {"uri": stack.pod_mlflow_url, "credentialsSecretRef": {"name": "mlflow"}},
            "images": {"trainer": images.base_name()},
        },
        "settings": {"progressSeconds": 1, "figuresSeconds": 1, "leaseSeconds": 5},
    }
    helm(
        "install", "dmd-operator", CHART, "--namespace", SYSTEM, "--wait", "--timeout", "3m", "--values", "-", *options,
        kubeconfig=stack.cluster.kubeconfig, text=yaml.safe_dump(values),
    )  # fmt: skip


def on_this_machine(manifest: dict[str, Any], scratch: str = "") -> dict[str, Any]:
    """`manifest` with pods that take the trainer and its libraries from this machine instead of from an image.

    What is tested is otherwise the manifest as it is: the trainer's real image has gigabytes of CUDA. With `scratch`,
    a size, a pod's scratch folder has a disk of its own that is no larger.
    """
    mounts = [
        {"name": "packages", "mountPath": PACKAGES, "readOnly": True},
        *(
            {"name": "sources", "mountPath": f"{SOURCES}/{folder}", "subPath": folder, "readOnly": True}
            for folder in ("crds", "trainer")
        ),
    ]
    environment = {"PYTHONPATH": f"{SOURCES}/crds:{SOURCES}/trainer:{PACKAGES}", "OMP_NUM_THREADS": "1"}
    template = {
        "spec": {
            "terminationGracePeriodSeconds": 30,  # a lost node's pods are waited for that long
            "containers": [
                {
                    "name": "trainer",
                    "imagePullPolicy": "Never",
                    "env": [{"name": name, "value": value} for name, value in environment.items()],
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [
                *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("packages", "sources")),
                *([{"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": scratch}}] if scratch else []),
            ],
        }
    }
    changed: dict[str, Any] = json.loads(json.dumps(manifest))
    for pods in ("workers", "pairWorkers"):
        changed["spec"].setdefault(pods, {})["podTemplate"] = template
    return changed


def _load_images(cluster: Cluster) -> None:
    base = images.base_image()
    operator = images.build_image(ROOT / "images" / "operator" / "Dockerfile", ROOT, OPERATOR_IMAGE, {"BASE": base})
    for archive in (images.base_archive(), operator):
        cluster.load_image(archive)


def _for_trainers() -> Iterator[dict[str, Any]]:
    """Credentials, and volumes with the trainer and its libraries: hostPath is refused to pods, but not to volumes."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    secrets = {"s3": keys, "mlflow": {"MLFLOW_TRACKING_USERNAME": "team", "MLFLOW_TRACKING_PASSWORD": "not-to-be-seen"}}
    for name, content in secrets.items():
        metadata = {"name": name, "namespace": TEAM}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}
    paths = {"packages": sysconfig.get_path("purelib"), "sources": str(ROOT)}
    for name, path in paths.items():
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "hostPath": {"path": path},
                "claimRef": {"namespace": TEAM, "name": name},
            },
        }
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": TEAM},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
