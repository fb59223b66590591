"""What the API server refuses, tried with kubectl as a user would: every rule, each answer with field and remedy."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api.crd import FROZEN, FROZEN_OPTIONAL
from dmd_api.rules import NAME_RULE, RULES
from dmd_api.uris import CREDENTIALS_MESSAGE
from tests.api.test_manifest import EXAMPLES, changed
from tests.api.values import NO_REPOSITORY
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import ClusterError
from tests.operator.live import install_crd, make_namespace

pytestmark = pytest.mark.cluster

NAMESPACE = "refusals"
# Manifests that break one rule each, by how its message begins.
BROKEN: dict[str, dict[str, Any]] = {
    "training.batchSize: ": changed("spec.workers", {"nodes": 3}),
    "training.microBatchSize": changed("spec.training.microBatchSize", 3),
    "method.regression: DMD": changed("spec.method.regression", ...),
    "method.regression: pairs": changed("spec.method.generatorSteps", 2),
    "method.gan": changed("spec.method.gan", {}),
    "data.images": changed("spec.method", {"name": "DMD2", "gan": {}}),
    "method.divergence": changed("spec.method.divergence", "Jeffreys"),
    "method.matchingNoise: minTimestep": changed("spec.method.matchingNoise", {"minTimestep": 3, "maxTimestep": 2}),
    "method.matchingNoise: the regression": changed("spec.method.fakeScoreUpdates", 0),
    "method.guidanceNoise: only": changed("spec.method.guidanceNoise", {"minTimestep": 1, "maxTimestep": 2}),
    "method.guidanceNoise: minTimestep": changed("spec.method.guidanceNoise", {"minTimestep": 3, "maxTimestep": 2}),
    "method.generatorSteps": changed("spec.method.generatorSteps", 4),
    "method.fakeScoreUpdates": changed("spec.method", {"name": "DMD2", "fakeScoreUpdates": 0}),
    "method.regression.features": changed("spec.method.regression.loss", "LPIPS"),
    "method.lora": changed("spec.method.lora", {"rank": 4}),
    "data: ": changed("spec.data.prompts", {"uri": "s3://a/b"}),
    "training.warmupSteps": changed("spec.training.warmupSteps", 12),
    "evaluation.metrics: Accuracy": changed("spec.data", {}),
    "evaluation.metrics: CLIPScore": changed("spec.evaluation.metrics", ["FID", "CLIPScore"]),
    "evaluation.prompts": changed("spec.evaluation.prompts", {"uri": "s3://a/b"}),
    "gates: each gate's": changed("spec.gates", [{"metric": "Coverage", "min": 0.5}]),
    "gates: each gate needs": changed("spec.gates", [{"metric": "FID", "max": 1, "min": 2}]),
    "evaluation.reference": changed("spec.gates", [{"metric": "FID", "max": 1}]),
    "tracking.alias": changed("spec.tracking.alias", "Latest"),
    "publish.huggingFace.repo": changed("spec.publish", {"huggingFace": {"repo": "o/n.git"}}),
    "tracking.registeredModel": changed("spec.tracking.registeredModel", "it's"),
    "metadata.name": changed("metadata.name", "n" * 47),
}
BROKEN["method.matchingNoise: the regression"]["spec"]["method"]["matchingNoise"] = {"minTimestep": 1, "maxTimestep": 2}
BROKEN["method.guidanceNoise: minTimestep"]["spec"]["teacher"]["guidanceScale"] = 2
del BROKEN["evaluation.reference"]["spec"]["evaluation"]["reference"]


@pytest.fixture(scope="module")
def server(api: ControlPlane) -> Iterator[ControlPlane]:
    install_crd(api.kubectl)
    make_namespace(api.kubectl, NAMESPACE)
    yield api
    api.kubectl("delete", "dmd", "--all", "-n", NAMESPACE)


def apply(server: ControlPlane, manifest: dict[str, Any], *options: str) -> str:
    return server.kubectl("apply", "-n", NAMESPACE, "-f", "-", *options, text=yaml.safe_dump(manifest))


def refusal(server: ControlPlane, manifest: dict[str, Any]) -> str:
    with pytest.raises(ClusterError) as caught:
        apply(server, manifest)
    return str(caught.value)


@pytest.mark.parametrize("rule", [*RULES, NAME_RULE], ids=lambda rule: rule.message[:40])
def test_a_rule_is_kept_and_says_field_and_remedy(server: ControlPlane, rule: Any) -> None:
    said = f"{rule.path}: {rule.message}"
    (manifest,) = (broken for field, broken in BROKEN.items() if said.startswith(field))
    message = refusal(server, manifest)
    assert said in message
    assert f"spec.{rule.path}" in message or rule is NAME_RULE


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.training.batchsize", 8, 'unknown field "spec.training.batchsize"'),
        ("spec.training.batchSize", "many", "spec.training.batchSize"),
        ("spec.training.learningRate", -1, "spec.training.learningRate"),
        ("spec.training.batchSize", ..., "spec.training.batchSize: Required value"),
        ("spec.method.name", "DMD3", 'supported values: "DMD", "DMD2"'),
        ("spec.teacher.uri", "hg://a/b", "spec.teacher.uri"),
        ("metadata.name", "Not_A_Name", "metadata.name"),
        ("metadata.name", "sdxl-1.0", "metadata.name: must have at most"),
        ("spec.teacher.uri", "s3://key:secret@bucket/teacher", CREDENTIALS_MESSAGE),
        ("spec.storage", {"uri": "s3://a/b", "endpointUrl": "https://token@host"}, CREDENTIALS_MESSAGE),
        ("spec.tracking.uri", "https://user:password@host", CREDENTIALS_MESSAGE),
        ("spec.tracking.experiment", "a\x1b[31mb", "spec.tracking.experiment"),
        *(("spec.publish", {"huggingFace": {"repo": name}}, "spec.publish.huggingFace.repo") for name in NO_REPOSITORY),
    ],
)
def test_a_bad_field_is_named(server: ControlPlane, path: str, value: object, said: str) -> None:
    assert said in refusal(server, changed(path, value))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_accepted(server: ControlPlane, path: Path) -> None:
    assert "created" in apply(server, yaml.safe_load(path.read_text()), "--dry-run=server")


CHANGES: dict[str, Any] = {
    "teacher": {"guidanceScale": 2},
    "data": {"classLabels": {"count": 11}},
    "method": {"fakeScoreUpdates": 2},
    "training": {"seed": 7},
    "evaluation": {"samples": 99},
    "workers": {"nodes": 2},
    "pairWorkers": {"parallelism": 2},
    "images": {"trainer": "other:2"},
    "storage": {"uri": "s3://other/place"},
    "huggingFace": {"credentialsSecretRef": {"name": "hub"}},
    "caBundle": {"configMapKeyRef": {"name": "company-ca"}},
    "serviceAccountName": "other",
    "tracking": {"experiment": "other"},
    "metadata": {"labels": {"team": "other"}},
    "publish": {"huggingFace": {"repo": "team/other"}},
}


@pytest.mark.parametrize("field", CHANGES)
def test_what_decides_a_run_cannot_change(server: ControlPlane, field: str) -> None:
    assert CHANGES.keys() == {*FROZEN, *FROZEN_OPTIONAL, "tracking"}
    apply(server, changed("metadata.name", "frozen"))
    manifest = changed("metadata.name", "frozen")
    value = CHANGES[field]
    before = manifest["spec"].get(field, {})
    manifest["spec"][field] = {**before, **value} if isinstance(value, dict) else value
    message = refusal(server, manifest)
    assert "is immutable: make a new DMDDistillation" in message
    assert f"spec.{field}" in message


def test_what_may_change_does(server: ControlPlane) -> None:
    manifest = changed("metadata.name", "changing")
    apply(server, manifest)
    wanted = copy.deepcopy(manifest)
    wanted["spec"] |= {"suspend": True, "maxRestarts": 3, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 60}
    wanted["spec"]["gates"] = [{"metric": "FID", "max": 1}]
    wanted["spec"]["tracking"] = {**manifest["spec"]["tracking"], "alias": "candidate"}
    assert "configured" in apply(server, wanted)


def test_a_deep_pod_template_is_kept_as_it_is(server: ControlPlane) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "aFieldOfTheFuture": {"deep": [1, 2]}}]}}
    manifest = changed("metadata.name", "template")
    manifest["spec"]["workers"] = {"nodes": 1, "podTemplate": template}
    apply(server, manifest)
    kept = server.kubectl.get("dmd", "template", "-n", NAMESPACE)
    assert kept["spec"]["workers"]["podTemplate"] == template
    assert json.loads(json.dumps(kept))["spec"]["maxRestarts"] == 10, "defaults are the API server's"
