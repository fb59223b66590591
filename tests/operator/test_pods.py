"""The objects of an attempt: what a cluster and its users expect of a trainer's pods."""

import json
from typing import Any

import pytest

from dmd_api import runtime
from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import GRACE_SECONDS, SHUTDOWN_SECONDS, Stage
from dmd_operator.pods import Owner, attempt_objects


def manifest(of_resource: dict[str, Any] | None = None, **spec: Any) -> DMDDistillation:
    return parse_manifest(
        {
            "apiVersion": "dmd-operator.io/v1alpha1",
            "kind": "DMDDistillation",
            "metadata": {"name": "sd", **(of_resource or {})},
            "spec": {
                "teacher": {"uri": "hf://owner/model"},
                "method": {"regression": {"pairs": 8}},
                "training": {"generatorUpdates": 600, "batchSize": 64, "learningRate": 1e-4},
                "workers": {"nodes": 4, "processesPerNode": 8, "resources": {"limits": {"amd.com/gpu": 8}}},
                "pairWorkers": {"parallelism": 16, "resources": {"limits": {"amd.com/gpu": 1}}},
                "storage": {"uri": "s3://bucket/runs", "credentialsSecretRef": {"name": "s3"}},
                "tracking": {"uri": "http://mlflow:5000", "credentialsSecretRef": {"name": "mlflow"}},
                "images": {"trainer": "trainer:1"},
                "huggingFace": {"credentialsSecretRef": {"name": "hub"}},
                **spec,
            },
        }
    )


def objects(stage: Stage, **spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Service, empty where there is none, and the Job."""
    metadata = spec.pop("metadata", None)
    *services, job = attempt_objects(manifest(metadata, **spec), stage, 3, Owner("team", "uid-1"))
    return services[0] if services else {}, job


def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def environment(job: dict[str, Any]) -> dict[str, Any]:
    variables = pod(job)["containers"][0]["env"]
    assert len({v["name"] for v in variables}) == len(variables)
    return {v["name"]: v.get("value") or v["valueFrom"]["secretKeyRef"] for v in variables}


@pytest.mark.parametrize(
    ("stage", "pods", "processes", "limits"),
    [
        (Stage.PREFLIGHT, 1, "1", None),
        (Stage.PREPARE, 16, "1", {"amd.com/gpu": 1}),
        (Stage.DISTILL, 4, "8", {"amd.com/gpu": 8}),
        (Stage.EVALUATE, 4, "8", {"amd.com/gpu": 8}),
    ],
)
def test_each_stage_has_its_pods(stage: Stage, pods: int, processes: str, limits: dict[str, int] | None) -> None:
    _, job = objects(stage)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (pods, pods)
    assert job["spec"]["completionMode"] == "Indexed"
    told = environment(job)
    assert (told[runtime.NODES], told[runtime.PROCESSES_PER_NODE]) == (str(pods), processes)
    assert runtime.NODE_RANK not in told
    assert pod(job)["containers"][0].get("resources", {}).get("limits") == limits


def test_an_attempt_is_one_job_that_its_owner_takes_along() -> None:
    service, job = objects(Stage.DISTILL)
    assert job["metadata"]["name"] == service["metadata"]["name"] == "sd-distill-3"
    assert job["spec"]["backoffLimit"] == 0
    assert pod(job)["restartPolicy"] == "Never"
    for one in (service, job):
        (owner,) = one["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("DMDDistillation", "sd", "uid-1")
    assert "suspend" not in job["spec"], "that field is Kueue's"


def test_agents_meet_by_a_service_that_selects_this_attempt_alone() -> None:
    service, job = objects(Stage.DISTILL)
    told = environment(job)
    assert told[runtime.RENDEZVOUS] == "sd-distill-3-0.sd-distill-3.team.svc:29500"
    assert pod(job)["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["selector"]["dmd-operator.io/attempt"] == "3"
    assert told[runtime.RUN_KEY] == "sd-uid-1"
    assert json.loads(told[runtime.MANIFEST])["metadata"]["name"] == "sd"


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("nodes", [1, 2])
def test_only_pods_that_look_for_each_other_have_a_service(stage: Stage, nodes: int) -> None:
    service, job = objects(stage, workers={"nodes": nodes})
    meets = nodes > 1 and stage in {Stage.DISTILL, Stage.EVALUATE}
    assert bool(service) == meets
    assert environment(job)[runtime.RENDEZVOUS].startswith(f"sd-{stage}-3-0.sd-" if meets else "localhost:")


def test_pods_meet_the_restricted_standard_and_get_no_token() -> None:
    for stage in Stage:
        _, job = objects(stage)
        spec = pod(job)
        (container,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
        told = environment(job)
        for variable in ("HOME", "TMPDIR", "HF_HOME", "TORCH_HOME", runtime.SCRATCH):
            assert told[variable].startswith(tuple(mounts.values())), variable


@pytest.mark.parametrize("stage", Stage)
def test_every_pod_gets_the_authorities_that_it_trusts(stage: Stage) -> None:
    _, job = objects(stage, caBundle={"configMapKeyRef": {"name": "company-ca", "key": "bundle.pem"}})
    mounts = {mount["name"]: mount for mount in pod(job)["containers"][0]["volumeMounts"]}
    (volume,) = [volume for volume in pod(job)["volumes"] if "configMap" in volume]
    (item,) = volume["configMap"]["items"]
    assert (volume["configMap"]["name"], item["key"]) == ("company-ca", "bundle.pem")
    assert mounts[volume["name"]]["readOnly"]
    assert environment(job)[runtime.CA_BUNDLE] == f"{mounts[volume['name']]['mountPath']}/{item['path']}"
    assert runtime.CA_BUNDLE not in environment(objects(stage)[1])


def test_workers_have_time_for_a_checkpoint_and_lost_nodes_are_left_soon() -> None:
    _, job = objects(Stage.DISTILL)
    assert environment(job)[runtime.SHUTDOWN_TIMEOUT] == str(SHUTDOWN_SECONDS)
    assert pod(job)["terminationGracePeriodSeconds"] == GRACE_SECONDS > SHUTDOWN_SECONDS
    assert {t["key"] for t in pod(job)["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }


@pytest.mark.parametrize(
    ("stage", "secrets"),
    [
        (Stage.PREFLIGHT, {"s3", "mlflow", "hub"}),
        (Stage.PREPARE, {"s3", "hub"}),
        (Stage.DISTILL, {"s3", "mlflow", "hub"}),
        (Stage.EVALUATE, {"s3", "mlflow", "hub"}),
    ],
)
def test_credentials_reach_the_stages_that_need_them(stage: Stage, secrets: set[str]) -> None:
    _, job = objects(stage)
    references = [value for value in environment(job).values() if isinstance(value, dict)]
    assert {reference["name"] for reference in references} == secrets


def test_a_teacher_in_the_registry_is_fetched_with_the_registrys_credentials() -> None:
    _, job = objects(Stage.PREPARE, teacher={"uri": "models:/sd@champion"})
    assert "MLFLOW_TRACKING_TOKEN" in environment(job)


def test_claims_are_mounted_once_each() -> None:
    _, job = objects(
        Stage.DISTILL,
        teacher={"uri": "pvc://models/sd"},
        storage={"uri": "pvc://work/runs"},
        evaluation={"reference": {"uri": "pvc://models/coco"}},
    )
    mounts = pod(job)["containers"][0]["volumeMounts"]
    assert {m["mountPath"] for m in mounts if m["name"].startswith("claim-")} == {
        f"{runtime.CLAIMS}/models",
        f"{runtime.CLAIMS}/work",
    }
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod(job)["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["models", "work"]


def test_the_template_adds_what_gpu_clusters_ask_for() -> None:
    template = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "priorityClassName": "research",
            "schedulerName": "volcano",
            "imagePullSecrets": [{"name": "registry"}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [
                {
                    "name": "trainer",
                    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                    "resources": {"limits": {"rdma/ib": 1}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                },
                {"name": "sidecar", "image": "busybox"},
            ],
        },
    }
    workers = {"nodes": 4, "resources": {"limits": {"nvidia.com/gpu": 1}}, "podTemplate": template}
    _, job = objects(Stage.DISTILL, workers=workers)
    spec = pod(job)
    assert job["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert (spec["priorityClassName"], spec["schedulerName"]) == ("research", "volcano")
    assert len(spec["tolerations"]) == 3
    assert [c["name"] for c in spec["containers"]] == ["trainer", "sidecar"]
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1, "rdma/ib": 1}
    assert environment(job)["NCCL_DEBUG"] == "INFO"
    _, preflight = objects(Stage.PREFLIGHT, workers=workers)
    assert pod(preflight)["nodeSelector"] == {"gpu": "h100"}
    assert pod(preflight)["containers"][0]["resources"] == {"requests": {"memory": "4Gi"}}, "preflight takes no GPU"


def test_queue_and_priority_are_passed_on_to_the_job() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "team": "vision"}
    _, job = objects(Stage.DISTILL, metadata={"labels": labels})
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "team" not in job["metadata"]["labels"]


@pytest.mark.parametrize("labels", [{"dmd-operator.io/distillation": "mine", "team": "a"}, None])
def test_what_decisions_rest_on_is_the_operators(labels: dict[str, str] | None) -> None:
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "OnFailure", "subdomain": "elsewhere"}}
    service, job = objects(Stage.DISTILL, workers={"nodes": 2, "podTemplate": template})
    found = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= found.items()
    assert ("team" in found) == (labels is not None)
    assert pod(job)["restartPolicy"] == "Never"
    assert pod(job)["subdomain"] == service["metadata"]["name"]


@pytest.mark.parametrize(("own", "policy"), [({}, "ClusterFirstWithHostNet"), ({"dnsPolicy": "Default"}, "Default")])
def test_workers_on_their_nodes_network_find_each_other(own: dict[str, str], policy: str) -> None:
    _, job = objects(Stage.DISTILL, workers={"podTemplate": {"spec": {"hostNetwork": True, **own}}})
    assert pod(job)["dnsPolicy"] == policy


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(
    "template",
    [
        {"spec": "x"},
        {"spec": ["x"]},
        {"spec": True},
        {"spec": {"containers": "abc"}},
        {"spec": {"containers": ["abc"]}},
        {"spec": {"containers": [None]}},
        {"spec": {"containers": {"name": "trainer"}}},
        {"metadata": "x"},
        {"metadata": {"labels": "x"}},
    ],
    ids=str,
)
def test_a_template_of_a_wrong_type_is_left_to_the_api_server(template: dict[str, Any], stage: Stage) -> None:
    settings = {"podTemplate": template}
    _, job = objects(stage, workers=settings, pairWorkers=settings, evaluation=settings)
    (field, value), *_ = template.items()
    merged = job["spec"]["template"][field]
    if isinstance(value, dict):
        (field, value), *_ = value.items()
        merged = merged[field]
    assert merged == value or set(map(str, value)) <= set(map(str, merged))


def test_trainers_get_a_manifest_without_templates() -> None:
    big = {"podTemplate": {"metadata": {"annotations": {"note": "x" * 200_000}}}}
    _, job = objects(Stage.DISTILL, workers=big, evaluation=big, pairWorkers=big)
    assert len(environment(job)[runtime.MANIFEST]) < 10_000


def test_every_object_has_the_users_labels_and_annotations() -> None:
    wanted = {"labels": {"team": "vision", "dmd-operator.io/stage": "mine"}, "annotations": {"owner": "vision"}}
    service, job = attempt_objects(manifest(metadata=wanted), Stage.DISTILL, 3, Owner("team", "uid-1"))
    for one in (service, job, job["spec"]["template"]):
        assert one["metadata"]["labels"]["team"] == "vision"
        assert one["metadata"]["labels"]["dmd-operator.io/stage"] == "distill"
        assert one["metadata"]["annotations"] == {"owner": "vision"}
