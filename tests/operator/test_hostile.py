"""Objects that a hostile tenant makes, on a real API server, and another tenant's run beside them that goes on."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from dmd_api.labels import ATTEMPT, CONTAINER, DISTILLATION, INDEX, JOB_NAME, STAGE
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.live import eventually, manifest
from tests.operator.process import operator
from tests.operator.simulated import simulated_pods

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

HOSTILE, INNOCENT = "a-hostile", "innocent"  # hostile objects are listed first
RUNS = f"/apis/dmd-operator.io/v1alpha1/namespaces/{HOSTILE}/dmddistillations"
HOLE = "<hole>"


def nested(levels: int) -> str:
    return '{"a": [' * (levels // 2) + "1" + "]}" * (levels // 2)


@pytest.fixture(scope="module", autouse=True)
def pods(api: ControlPlane) -> Iterator[None]:
    live.install_crd(api.kubectl)
    for namespace in (HOSTILE, INNOCENT):
        live.make_namespace(api.kubectl, namespace)
    stop = Event()

    async def play() -> None:
        async with simulated_pods(str(api.kubeconfig)):
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as thread:
        playing = thread.submit(asyncio.run, play())
        yield
        stop.set()
        playing.result(20)
    api.kubectl("delete", "pods", "--all", "-n", HOSTILE, "--grace-period=0", "--force")
    api.kubectl("delete", "namespace", HOSTILE, INNOCENT, "--wait=false")


def send(api: ControlPlane, verb: str, path: str, body: Any, hole: str, folder: Path) -> None:
    """Sends JSON as it is, with `hole` where `HOLE` stands: Python's own writer does not go as deep."""
    file = folder / "body.json"
    file.write_text(json.dumps(body).replace(json.dumps(HOLE), hole))
    api.kubectl(verb, "--raw", path, "-f", str(file))


def make(api: ControlPlane, name: str, folder: Path, hole: str = "{}", **spec: Any) -> None:
    send(api, "create", RUNS, manifest(name, HOSTILE, **spec), hole, folder)


def with_deep_managed_fields(api: ControlPlane, path: str, folder: Path) -> None:
    """Whoever may update an object may say of whom each of its fields is, fields that are not there included."""
    body = json.loads(api.kubectl("get", "--raw", path))
    (first, *_) = body["metadata"]["managedFields"]
    body["metadata"]["managedFields"] = [{**first, "manager": "hostile", "fieldsV1": {"f:spec": HOLE}}]
    send(api, "replace", path, body, '{"f:a":' * 3000 + "{}" + "}" * 3000, folder)


def make_all(api: ControlPlane, folder: Path, suffix: str) -> dict[str, str]:
    """All of them; by name what their condition says."""
    template = {"podTemplate": {"spec": HOLE}}
    make(api, f"deep-{suffix}", folder, nested(1000), workers={"nodes": 1, **template})
    make(api, f"deeper-{suffix}", folder, nested(9000), evaluation=template)
    make(api, f"resources-{suffix}", folder, nested(1000), pairWorkers={"resources": {"limits": HOLE}})
    make(api, f"wide-{suffix}", folder, "[" + ",".join(["[]"] * 300_000) + "]", workers={"nodes": 1, **template})
    for name, value in {
        "spec": {"spec": "text"},
        "containers": {"spec": {"containers": "text"}},
        "container": {"spec": {"containers": ["text", {"name": "another"}, None, {"name": {}}]}},
        "metadata": {"metadata": ["text"]},
        "number": {"spec": {"priority": 10**300}},
    }.items():
        make(api, f"{name}-{suffix}", folder, workers={"nodes": 1, "podTemplate": value})
    return {
        f"deep-{suffix}": "spec.workers.podTemplate is nested more than",
        f"deeper-{suffix}": "spec.evaluation.podTemplate is nested more than",
        f"resources-{suffix}": "spec.pairWorkers.resources is nested more than",
        f"wide-{suffix}": "spec is larger than",
    }


def told(api: ControlPlane, name: str) -> str:
    """What its condition says; of all else in it, Python's reader may not see the end."""
    path = '{.status.conditions[?(@.type=="Healthy")].message}'
    return api.kubectl("get", "dmd", name, "-n", HOSTILE, "-o", f"jsonpath={path}")


def test_objects_without_bounds_stop_nobody_elses_run(api: ControlPlane, tmp_path: Path) -> None:
    expected = make_all(api, tmp_path, "before")
    # A status of which the operator can read a part.
    make(api, "status", tmp_path)
    body = json.loads(api.kubectl("get", "--raw", f"{RUNS}/status"))
    send(api, "replace", f"{RUNS}/status/status", {**body, "status": {"resolved": HOLE}}, nested(2000), tmp_path)
    make(api, "stage", tmp_path)
    body = json.loads(api.kubectl("get", "--raw", f"{RUNS}/stage"))
    send(api, "replace", f"{RUNS}/stage/status", {**body, "status": {"stage": "lunch"}}, "", tmp_path)
    make(api, "managed", tmp_path)
    with_deep_managed_fields(api, f"{RUNS}/managed", tmp_path)
    with operator(api.kubeconfig, tmp_path) as process:
        api.kubectl.apply(manifest("run", INNOCENT))
        expected |= make_all(api, tmp_path, "after")
        live.wait_until_complete(api.kubectl, "run", INNOCENT)
        for name, words in expected.items():
            eventually(lambda: words in told(api, name), f"{name} is told that {words}")  # noqa: B023
        for part in ("spec", "containers", "container", "metadata", "number"):
            for suffix in ("before", "after"):
                eventually(lambda: told(api, f"{part}-{suffix}"), f"{part} is told what is wrong")  # noqa: B023
        live.wait_until_complete(api.kubectl, "managed", HOSTILE)
        for name in ("status", "stage"):
            live.wait_until_complete(api.kubectl, name, HOSTILE)
            assert "StatusReset" in [reason for reason, _ in live.events(api.kubectl, name, HOSTILE)]
        assert process.get("/healthz")[0] == 200
        api.kubectl.apply(manifest("next", INNOCENT))
        live.wait_until_complete(api.kubectl, "next", INNOCENT)
        assert "Traceback" not in process.log.read_text()


def test_pods_and_jobs_of_others_with_a_runs_labels_decide_nothing(api: ControlPlane, tmp_path: Path) -> None:
    """They are in the run's own namespace, where labels are anybody's; what ends, ends without a word of the run's."""
    name = "labelled"
    labels = {DISTILLATION: name, STAGE: "distill", ATTEMPT: "1"}
    bad = [{**labels, STAGE: "lunch"}, {**labels, ATTEMPT: "first"}, {DISTILLATION: name}]
    for number, junk in enumerate(bad):
        api.kubectl.apply(
            stranger("Job", f"job-{number}", junk), stranger("Pod", f"pod-{number}", {**junk, INDEX: "x"})
        )
    impostor = {**labels, JOB_NAME: f"{name}-distill-1", INDEX: "0"}
    api.kubectl.apply(stranger("Pod", "impostor", impostor))
    ended = {
        "terminated": {
            "exitCode": 2,
            "message": '{"stage": "distill", "error": {"reason": "BadInput", "message": "x"}}',
        }
    }
    container = {"name": CONTAINER, "state": ended, "ready": False, "restartCount": 0, "image": "", "imageID": ""}
    patch = json.dumps({"status": {"phase": "Failed", "containerStatuses": [container]}})
    subresource = ("--subresource=status", "--type=merge", "-p", patch)
    api.kubectl("patch", "pod", "impostor", "-n", INNOCENT, *subresource)
    with operator(api.kubeconfig, tmp_path) as process:
        api.kubectl.apply(manifest(name, INNOCENT))
        live.wait_until_complete(api.kubectl, name, INNOCENT, seconds=60)
        assert "Traceback" not in process.log.read_text()
    found = live.status(api.kubectl, name, INNOCENT)
    assert (found["failures"], found["retries"]) == (0, 0)


def test_a_pod_too_deep_to_read_stops_nobody_elses_run(api: ControlPlane, tmp_path: Path) -> None:
    """The last test: what plays the pods cannot read it either."""
    pod = stranger("Pod", "deep", {DISTILLATION: "any"})
    api.kubectl.apply({**pod, "metadata": {**pod["metadata"], "namespace": HOSTILE}})
    with_deep_managed_fields(api, f"/api/v1/namespaces/{HOSTILE}/pods/deep", tmp_path)
    with operator(api.kubeconfig, tmp_path):
        for name in ("first", "second"):
            api.kubectl.apply(manifest(name, INNOCENT))
            eventually(lambda: live.exists(api.kubectl, "job", f"{name}-preflight-1", INNOCENT), f"{name} begins")  # noqa: B023
            api.kubectl("delete", "pods", "-l", f"{DISTILLATION}={name}", "-n", INNOCENT, "--grace-period=0", "--force")
            eventually(lambda: live.exists(api.kubectl, "job", f"{name}-preflight-2", INNOCENT), f"{name} goes on")  # noqa: B023
            api.kubectl("label", "pod", "deep", "-n", HOSTILE, "--overwrite", f"changed-after={name}")


def stranger(kind: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pod or a suspended Job that nobody of ours has made."""
    limits = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    limits["seccompProfile"] = {"type": "RuntimeDefault"}
    pod = {"restartPolicy": "Never", "containers": [{"name": CONTAINER, "image": "x", "securityContext": limits}]}
    metadata = {"name": name, "namespace": INNOCENT, "labels": labels}
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": pod}
    spec = {"suspend": True, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": spec}
