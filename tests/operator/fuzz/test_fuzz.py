"""Whatever tenants write: no traceback, nothing that hangs, and every refusal names its field.

Through a real API server and a real operator. A seeded few of everything; `make fuzz` tries all of them.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import yaml
from kubernetes import config

from tests.api.test_manifest import EXAMPLES
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.fuzz import mutations
from tests.operator.fuzz.answers import Answers
from tests.operator.fuzz.runs import DEADLINE, NAMESPACE, Runs
from tests.operator.live import condition, eventually
from tests.operator.process import Operator, operator
from tests.operator.simulated import simulated_pods

pytestmark = pytest.mark.cluster

MANIFESTS, TEMPLATES, STATUSES, ANSWERS = (1000, 300, 300, 100) if "DMD_DAMAGED" in os.environ else (40, 12, 20, 8)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def runs(api: ControlPlane, answers: Answers) -> Iterator[Runs]:
    """Its pods never end by themselves."""
    live.install_crd(api.kubectl)
    live.make_namespace(api.kubectl, NAMESPACE)
    stop = Event()

    async def play() -> None:
        async with simulated_pods(str(api.kubeconfig), lambda _: None) as pods:
            pods.address = answers.address
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as thread, config.new_client_from_config(str(api.kubeconfig)) as connection:
        playing = thread.submit(asyncio.run, play())
        yield Runs(connection)
        stop.set()
        playing.result(20)


@pytest.fixture(scope="module")
def process(api: ControlPlane, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    defaults = {"storage": {"uri": "s3://bucket/runs"}, "tracking": {"uri": "http://mlflow:5000"}}
    defaults |= {"images": {"trainer": "trainer:1"}}
    settings = {"progress_seconds": "1", "figures_seconds": "1", "defaults": json.dumps(defaults)}
    with operator(api.kubeconfig, tmp_path_factory.mktemp("operator"), **settings) as process:
        yield process


@pytest.fixture(autouse=True)
def nothing_left(runs: Runs, process: Operator) -> Iterator[None]:
    """A test that fails leaves nothing to the next."""
    yield
    runs.delete()


def no_traceback(process: Operator) -> None:
    """Nothing went wrong in the operator itself."""
    log = process.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
    assert process.process.poll() is None


def settled(run: dict[str, Any]) -> bool:
    """The operator has said what it makes of the run."""
    return any(found["reason"] not in {"", "Starting"} for found in run.get("status", {}).get("conditions", []))


def refusal(run: dict[str, Any]) -> str:
    """Why the operator does not follow a run; empty where it does."""
    healthy = condition(run["status"], "Healthy")
    return healthy["message"] if healthy.get("reason") in {"InvalidManifest", "Refused"} else ""


def every_refusal_names_its_field(
    what: str, refused: dict[str, str], runs: Runs, places: dict[str, list[mutations.Path]]
) -> None:
    """The API server's and the operator's: a field that is wrong, what it is in, or what no longer fits it."""
    by_operator = {name: message for name, run in runs.all().items() if (message := refusal(run))}
    print(f"{len(places)} {what}: {len(refused)} refused by the API server, {len(by_operator)} by the operator")
    said = refused | by_operator
    fields = {name: {key for path in places[name] for key in path if isinstance(key, str)} for name in said}
    unnamed = [(message[:300], places[name]) for name, message in said.items() if not _any(fields[name], message)]
    assert not unnamed


def _any(fields: set[str], message: str) -> bool:
    return any(field in message for field in fields) or re.search(r"\bspec[.\[]", message) is not None


def obeyed(runs: Runs, process: Operator) -> None:
    """All runs can be suspended, resumed and deleted, whatever is wrong with them."""
    every = runs.all()
    runs.suspend(every, True)
    eventually(lambda: not runs.working(), "none works while it is suspended", DEADLINE)
    runs.suspend(every, False)
    good = {name for name, run in every.items() if not refusal(run)}
    eventually(lambda: good <= runs.working(), "all that are right work again", DEADLINE)
    runs.delete()
    no_traceback(process)


def test_manifests(runs: Runs, process: Operator) -> None:
    bases = [yaml.safe_load(path.read_text()) for path in EXAMPLES]
    manifests, places = {}, {}
    for number in range(MANIFESTS):
        choose, name = random.Random(number), f"manifest-{number}"
        base = choose.choice(bases)
        spec, places[name] = mutations.mutated(base["spec"], choose)
        manifests[name] = {**base, "spec": spec}
    half = MANIFESTS // 2
    refused = runs.create(dict(list(manifests.items())[:half]))
    refused |= runs.create(dict(list(manifests.items())[half:]), "Ignore")
    eventually(lambda: all(settled(run) for run in runs.all().values()), "all are looked at", DEADLINE)
    every_refusal_names_its_field("manifests", refused, runs, places)
    obeyed(runs, process)


TEMPLATE = yaml.safe_load("""
metadata:
  labels: {team: vision}
  annotations: {sidecar.istio.io/inject: "false"}
spec:
  nodeSelector: {gpu: h100}
  tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
  priorityClassName: ""
  hostNetwork: false
  dnsPolicy: ClusterFirst
  securityContext: {fsGroup: 2000, supplementalGroups: [1]}
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {team: vision}}}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]
  volumes:
  - {name: data, emptyDir: {sizeLimit: 1Gi}}
  - {name: scratch, emptyDir: {medium: Memory}}
  initContainers:
  - {name: first, image: "busybox:1", command: [sh, -c, "true"], securityContext: &restricted
      {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, runAsNonRoot: true}}
  containers:
  - name: trainer
    env: [{name: NCCL_DEBUG, value: INFO}, {name: TOKEN, valueFrom: {secretKeyRef: {name: a, key: b}}}]
    envFrom: [{configMapRef: {name: settings}}]
    ports: [{containerPort: 9000, name: metrics, protocol: TCP}]
    volumeMounts: [{name: data, mountPath: /data}]
    resources: {limits: {cpu: "1", memory: 1Gi}, requests: {cpu: "1"}}
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 10}
  - {name: sidecar, image: "busybox:1", securityContext: *restricted}
""")


def test_pod_templates(runs: Runs, process: Operator) -> None:
    right = live.manifest("right", NAMESPACE, workers={"podTemplate": TEMPLATE})
    manifests: dict[str, Any] = {"right": right}
    places: dict[str, list[mutations.Path]] = {"right": []}
    for number in range(TEMPLATES):
        choose, name = random.Random(number), f"template-{number}"
        template, places[name] = mutations.mutated(TEMPLATE, choose)
        where = choose.choice(("workers", "pairWorkers", "evaluation"))
        manifests[name] = live.manifest(name, NAMESPACE, **{where: {"podTemplate": template}})
    refused = runs.create(manifests)
    eventually(lambda: all(settled(run) for run in runs.all().values()), "all are looked at", DEADLINE)
    assert "right" not in refused
    assert not refusal(runs.all()["right"])
    every_refusal_names_its_field("templates", refused, runs, places)
    obeyed(runs, process)


def test_statuses(runs: Runs, process: Operator) -> None:
    every = [f"status-{number}" for number in range(STATUSES)]
    assert not runs.create({name: live.manifest(name, NAMESPACE) for name in every})
    eventually(lambda: set(every) <= runs.working(), "all work", DEADLINE)
    written = {}
    for number, (name, run) in enumerate(runs.all().items()):
        known = {
            "step": 3,
            "total": 600,
            "losses": {"fakeScore": 0.5},
            "warnings": ["a"],
            "messages": ["b"],
            "fid": 1.5,
        }
        written[name], _ = mutations.mutated({**run["status"], **known}, random.Random(number))
    refused = runs.write_status(written)
    print(f"{STATUSES} statuses: {len(refused)} refused by the API server")
    obeyed(runs, process)


def test_progress_answers(runs: Runs, process: Operator, answers: Answers) -> None:
    every = [f"answer-{number}" for number in range(ANSWERS)]
    for number, name in enumerate(every):
        good = {
            **{"stage": "preflight", "attempt": 1, "step": 7, "total": 9, "unit": "updates", "activity": "training"},
            **{"losses": {"fake_score": 0.5, "gan": 1.0}, "etaSeconds": 3.5, "imagesPerSecond": 2.0, "fid": 1.5},
            **{"warnings": ["one"], "messages": ["two"], "checkpointStep": 5, "bestStep": 5, "mlflowRun": "abc"},
        }
        wrong, _ = mutations.mutated(good, random.Random(number))
        cut = random.Random(number).choice((None, None, None, 40))
        answers.answer(name, json.dumps(wrong).encode()[:cut])
    with answers.served():
        assert not runs.create({name: live.manifest(name, NAMESPACE) for name in every})
        eventually(lambda: set(every) <= answers.asked, "all are asked", DEADLINE)
        asked = set(answers.asked)
        answers.asked.clear()
        eventually(lambda: asked <= answers.asked, "and asked again", DEADLINE)
        obeyed(runs, process)
