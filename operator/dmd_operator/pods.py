"""The Kubernetes objects of an attempt: an Indexed Job, and the headless Service its agents meet by."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchx.specs import Role

from dmd_api import runtime
from dmd_api.apps import PROGRESS_PORT, RENDEZVOUS_PORT, stage_app
from dmd_api.manifest import API_VERSION, KIND, DMDDistillation, PodSettings
from dmd_api.runtime import Stage
from dmd_api.uris import parse_uri
from dmd_operator.credentials import credentials
from dmd_operator.merge import merge

CONTAINER = "trainer"
DISTILLATION = "dmd-operator.io/distillation"
STAGE = "dmd-operator.io/stage"
ATTEMPT = "dmd-operator.io/attempt"
PASSED_ON = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Labels of the resource that queueing systems read on Jobs."""
SHUTDOWN_SECONDS = 120
"""What workers get for a checkpoint after SIGTERM; the pod's grace period leaves the launcher time to end."""
GRACE_SECONDS = SHUTDOWN_SECONDS + 60
UNREACHABLE_SECONDS = 30
"""How long a pod stays on a node that does not answer, instead of Kubernetes' five minutes: the others wait for it."""
WRITABLE = {"tmp": "/tmp", "home": "/home/dmd", "scratch": "/scratch"}  # noqa: S108 - an emptyDir of the pod's own
"""Folders on emptyDirs: the root file system is read-only."""
RETRIES_PER_INDEX = 3
"""Preparing's pods work alone: each is tried again on its own before the attempt fails."""


@dataclass(frozen=True)
class Owner:
    """The resource that an attempt belongs to.

    Attributes:
        namespace: where it and all its children are.
        uid: goes into the children's owner references, by which they are deleted.
    """

    namespace: str
    uid: str


def attempt_objects(manifest: DMDDistillation, stage: Stage, attempt: int, owner: Owner) -> list[dict[str, Any]]:
    """What is created for an attempt, in this order: a Job that is refused leaves no Service behind.

    Args:
        manifest: its defaults resolved.
        stage: which.
        attempt: its number, from 1.
        owner: the resource.
    """
    name = f"{manifest.metadata.name}-{stage}-{attempt}"
    labels = {
        "app.kubernetes.io/name": "dmd-trainer",
        "app.kubernetes.io/managed-by": "dmd-operator",
        DISTILLATION: manifest.metadata.name,
        STAGE: str(stage),
        ATTEMPT: str(attempt),
    }
    metadata = {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": manifest.metadata.name,
                "uid": owner.uid,
                "controller": True,
            }
        ],
    }
    pods = nodes(manifest, stage)
    address = f"{name}-0.{name}.{owner.namespace}.svc"
    app = stage_app(
        manifest,
        stage,
        run_key=f"{manifest.metadata.name}-{owner.uid}",
        attempt=attempt,
        rendezvous=f"{address}:{RENDEZVOUS_PORT}",
        progress_address=f"0.0.0.0:{PROGRESS_PORT}",
        nodes=pods,
        # Preparing's pods are alone: more of them, and not more processes in each, make more pairs at a time.
        processes_per_node=1 if stage is Stage.PREPARE else None,
        environment={
            runtime.SHUTDOWN_TIMEOUT: str(SHUTDOWN_SECONDS),
            runtime.SCRATCH: WRITABLE["scratch"],
            "HOME": WRITABLE["home"],
            "TMPDIR": WRITABLE["tmp"],
            "HF_HOME": f"{WRITABLE['scratch']}/huggingface",
            "TORCH_HOME": f"{WRITABLE['scratch']}/torch",
            "MPLCONFIGDIR": f"{WRITABLE['tmp']}/matplotlib",
            "PYTHONUNBUFFERED": "1",
            "NCCL_DEBUG": "WARN",
        },
    )
    (role,) = app.roles
    settings = pod_settings(manifest, stage)
    template = merge(
        {"metadata": {"labels": labels}, "spec": _pod_spec(manifest, stage, role, settings, name)},
        settings.pod_template,
    )
    job: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "labels": {**labels, **_passed_on(manifest)}},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            **({"backoffLimitPerIndex": RETRIES_PER_INDEX} if stage is Stage.PREPARE else {"backoffLimit": 0}),
            "template": template,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            # Agents look for index 0 while it still pulls its image.
            "publishNotReadyAddresses": True,
            "selector": {DISTILLATION: manifest.metadata.name, STAGE: str(stage), ATTEMPT: str(attempt)},
            "ports": [{"name": port, "port": number} for port, number in role.port_map.items()],
        },
    }
    return [job, service]


def nodes(manifest: DMDDistillation, stage: Stage) -> int:
    """How many pods `stage` has."""
    match stage:
        case Stage.PREFLIGHT:
            return 1
        case Stage.PREPARE:
            return manifest.spec.pair_workers.parallelism
        case _:
            return manifest.spec.workers.nodes


def pod_settings(manifest: DMDDistillation, stage: Stage) -> PodSettings:
    """What the manifest asks of the pods of `stage`; preflight takes no accelerator, only the template."""
    spec = manifest.spec
    match stage:
        case Stage.PREFLIGHT:
            return PodSettings(pod_template=_without_resources(spec.workers.pod_template))
        case Stage.PREPARE:
            return spec.pair_workers
        case Stage.DISTILL:
            return spec.workers
        case Stage.EVALUATE:
            own = spec.evaluation
            return PodSettings(
                resources=own.resources or spec.workers.resources,
                pod_template=own.pod_template or spec.workers.pod_template,
            )


def _without_resources(template: dict[str, Any]) -> dict[str, Any]:
    spec = template.get("spec") or {}
    containers = [
        {field: value for field, value in container.items() if field != "resources"}
        for container in spec.get("containers") or []
    ]
    return {**template, "spec": {**spec, "containers": containers}} if containers else template


def _pod_spec(manifest: DMDDistillation, stage: Stage, role: Role, settings: PodSettings, name: str) -> dict[str, Any]:
    spec = manifest.spec
    # An Indexed Job tells each pod its number itself.
    environment = [{"name": key, "value": value} for key, value in role.env.items() if key != runtime.NODE_RANK]
    claims = sorted(set(_claims(manifest)))
    container = {
        "name": CONTAINER,
        "image": spec.images.trainer,
        "command": [role.entrypoint],
        "args": list(role.args),
        "env": [*environment, *credentials(spec, stage)],
        "ports": [{"name": port, "containerPort": number} for port, number in role.port_map.items()],
        **({"resources": settings.resources} if settings.resources else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            *({"name": volume, "mountPath": path} for volume, path in WRITABLE.items()),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - NCCL and data loaders outgrow the runtime's 64 MiB
            *({"name": f"claim-{i}", "mountPath": f"{runtime.CLAIMS}/{claim}"} for i, claim in enumerate(claims)),
        ],
    }
    return {
        "restartPolicy": "Never",
        "subdomain": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"serviceAccountName": spec.service_account_name} if spec.service_account_name else {}),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{taint}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": UNREACHABLE_SECONDS,
            }
            for taint in ("not-ready", "unreachable")
        ],
        "containers": [container],
        "volumes": [
            *({"name": volume, "emptyDir": {}} for volume in WRITABLE),
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": c}} for i, c in enumerate(claims)),
        ],
    }


def _claims(manifest: DMDDistillation) -> Iterator[str]:
    """The claims that any `pvc://` of the manifest names, however deep it stands."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for field, child in value.items():
                if field == "uri" and isinstance(child, str) and child.startswith("pvc:"):
                    yield parse_uri(child).path.partition("/")[0]
                elif field not in {"podTemplate", "resources"}:
                    yield from walk(child)

    return walk(manifest.spec.model_dump(by_alias=True, exclude_none=True))


def _passed_on(manifest: DMDDistillation) -> dict[str, str]:
    return {label: value for label, value in manifest.metadata.labels.items() if label in PASSED_ON}
