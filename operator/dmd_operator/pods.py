"""An attempt's Indexed Job, and where its launchers have to meet, the headless Service by which they do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchx.specs import Role

from dmd_api import runtime
from dmd_api.apps import PROGRESS_PORT, RENDEZVOUS_PORT, stage_app
from dmd_api.labels import ATTEMPT, CONTAINER, DISTILLATION, STAGE
from dmd_api.manifest import API_VERSION, KIND, DMDDistillation
from dmd_api.spec import CABundle, PodSettings, Spec
from dmd_api.stages import GRACE_SECONDS, SHUTDOWN_SECONDS, Size, Stage
from dmd_api.uris import parse_uri
from dmd_operator.credentials import credentials
from dmd_operator.merge import merge

PASSED_ON = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Labels of the resource that queueing systems read on Jobs."""
UNREACHABLE_SECONDS = 30
"""Seconds that a pod stays on a node that does not answer, not Kubernetes' 300: the others wait for it."""
PREFLIGHT_MEMORY = "4Gi"
"""What preflight needs whatever the teacher, whose weights it does not load: 1.3 GiB were measured, mostly libraries;
the rest is for the networks of an evaluation, of which CLIP's ViT-L takes 1.7 GB."""
WRITABLE = {"tmp": "/tmp", "home": "/home/dmd", "scratch": "/scratch"}  # noqa: S108 - an emptyDir of the pod's own
"""Folders on emptyDirs: the root file system is read-only."""
_CA_VOLUME, _CA_FILE = "ca-bundle", PurePosixPath(runtime.CA_BUNDLE_FILE)


@dataclass(frozen=True)
class Owner:
    """The resource that an attempt belongs to.

    Attributes:
        namespace: where it and all its children are.
        uid: goes into the children's owner references, by which they are deleted.
    """

    namespace: str
    uid: str

    def metadata(self, manifest: DMDDistillation, name: str, labels: dict[str, str]) -> dict[str, Any]:
        """The metadata of a child, the user's labels and annotations among them.

        Args:
            manifest: the resource.
            name: the child's.
            labels: the operator's own.
        """
        owner: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": manifest.metadata.name,
            "uid": self.uid,
        }
        # A deletion in the foreground waits for the pods.
        owner |= {"controller": True, "blockOwnerDeletion": True}
        wanted = manifest.spec.metadata
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": {**wanted.labels, **labels},
            **({"annotations": wanted.annotations} if wanted.annotations else {}),
            "ownerReferences": [owner],
        }


def attempt_objects(manifest: DMDDistillation, stage: Stage, attempt: int, owner: Owner) -> list[dict[str, Any]]:
    """The objects of an attempt in the order of their creation: workers find a Service that was there before them.

    Args:
        manifest: with its defaults resolved.
        stage: the stage.
        attempt: the attempt's number, from 1.
        owner: the resource.
    """
    one = _Attempt(manifest, stage, attempt, owner)
    return [_service(one), _job(one)] if one.meets else [_job(one)]


@dataclass(frozen=True)
class _Attempt:
    """An attempt, and what all of its objects share."""

    manifest: DMDDistillation
    stage: Stage
    number: int
    owner: Owner

    @property
    def name(self) -> str:
        """The name of its Job and its Service."""
        return f"{self.manifest.metadata.name}-{self.stage}-{self.number}"

    @property
    def size(self) -> Size:
        return self.stage.size(self.manifest.spec)

    @property
    def meets(self) -> bool:
        """Its pods look for each other by name, and so there is a Service."""
        return self.stage.meets(self.size.nodes)

    @property
    def selector(self) -> dict[str, str]:
        """The labels that no other attempt's pods have."""
        return {DISTILLATION: self.manifest.metadata.name, STAGE: str(self.stage), ATTEMPT: str(self.number)}

    @property
    def labels(self) -> dict[str, str]:
        return {
            **self.manifest.spec.metadata.labels,
            "app.kubernetes.io/name": "dmd-trainer",
            "app.kubernetes.io/managed-by": "dmd-operator",
            **self.selector,
        }

    @property
    def annotations(self) -> dict[str, Any]:
        """The field with the user's annotations, where there are any."""
        own = self.manifest.spec.metadata.annotations
        return {"annotations": own} if own else {}

    @property
    def metadata(self) -> dict[str, Any]:
        return self.owner.metadata(self.manifest, self.name, self.labels)

    @property
    def role(self) -> Role:
        """Its command, environment and ports, as torchx describes them."""
        address = f"{self.name}-0.{self.name}.{self.owner.namespace}.svc" if self.meets else "localhost"
        app = stage_app(
            self.manifest,
            self.stage,
            run_key=f"{self.manifest.metadata.name}-{self.owner.uid}",
            attempt=self.number,
            rendezvous=f"{address}:{RENDEZVOUS_PORT}",
            progress_address=f":{PROGRESS_PORT}",
            size=self.size,
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
                **({runtime.CA_BUNDLE: runtime.CA_BUNDLE_FILE} if self.manifest.spec.ca_bundle else {}),
            },
        )
        (role,) = app.roles
        return role


def _job(attempt: _Attempt) -> dict[str, Any]:
    settings = pod_settings(attempt.manifest, attempt.stage)
    template = {
        "metadata": {"labels": attempt.labels, **attempt.annotations},
        "spec": _pod_spec(attempt, settings.resources),
    }
    retries = attempt.stage.pod_retries
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**attempt.metadata, "labels": {**attempt.labels, **_passed_on(attempt.manifest)}},
        "spec": {
            "completionMode": "Indexed",
            "completions": attempt.size.nodes,
            "parallelism": attempt.size.nodes,
            **({"backoffLimitPerIndex": retries} if retries else {"backoffLimit": 0}),
            "template": _with_our_own(merge(template, settings.pod_template), attempt),
        },
    }


def _with_our_own(template: dict[str, Any], attempt: _Attempt) -> dict[str, Any]:
    """The merged template with what the operator's decisions rest on, which no user's may take away.

    Labels by which pods are found, the name by which workers meet, one end for each pod. A field of a wrong type stays
    as it is: the API server says what is wrong with it.
    """
    metadata, spec = template.get("metadata", {}), template.get("spec")
    labels = metadata.get("labels", {}) if isinstance(metadata, Mapping) else None
    if isinstance(labels, Mapping):
        template = {**template, "metadata": {**metadata, "labels": {**labels, **attempt.labels}}}
    if isinstance(spec, Mapping):
        # On the node's network the default policy takes the node's resolver, which knows no Service.
        policy = {"dnsPolicy": "ClusterFirstWithHostNet"} if spec.get("hostNetwork") is True else {}
        template = {**template, "spec": {**policy, **spec, "restartPolicy": "Never", "subdomain": attempt.name}}
    return template


def _service(attempt: _Attempt) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": attempt.metadata,
        "spec": {
            "clusterIP": "None",
            # Agents look for index 0 while it still pulls its image.
            "publishNotReadyAddresses": True,
            "selector": attempt.selector,
            "ports": [{"name": port, "port": number} for port, number in attempt.role.port_map.items()],
        },
    }


def _pod_spec(attempt: _Attempt, resources: dict[str, Any]) -> dict[str, Any]:
    spec = attempt.manifest.spec
    claims = sorted(set(_claims(attempt.manifest)))
    return {
        "restartPolicy": "Never",
        "subdomain": attempt.name,
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
        "containers": [_container(attempt, resources, claims)],
        "volumes": [
            *({"name": volume, "emptyDir": {}} for volume in WRITABLE),
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": c}} for i, c in enumerate(claims)),
            *([_ca_volume(spec.ca_bundle)] if spec.ca_bundle else []),
        ],
    }


def _ca_volume(bundle: CABundle) -> dict[str, Any]:
    """A volume, since a variable of the environment has room for 128 KiB: half of what the public authorities take."""
    key = bundle.config_map_key_ref
    item = {"key": key.key, "path": _CA_FILE.name}
    return {"name": _CA_VOLUME, "configMap": {"name": key.name, "items": [item]}}


def _container(attempt: _Attempt, resources: dict[str, Any], claims: list[str]) -> dict[str, Any]:
    spec, role = attempt.manifest.spec, attempt.role
    # An Indexed Job tells each pod its number itself.
    environment = [{"name": key, "value": value} for key, value in role.env.items() if key != runtime.NODE_RANK]
    return {
        "name": CONTAINER,
        "image": spec.images.trainer,
        "command": [role.entrypoint],
        "args": list(role.args),
        "env": [*environment, *credentials(spec, attempt.stage)],
        "ports": [{"name": port, "containerPort": number} for port, number in role.port_map.items()],
        **({"resources": resources} if resources else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            *({"name": volume, "mountPath": path} for volume, path in WRITABLE.items()),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - NCCL and data loaders outgrow the runtime's 64 MiB
            *({"name": f"claim-{i}", "mountPath": f"{runtime.CLAIMS}/{claim}"} for i, claim in enumerate(claims)),
            *([{"name": _CA_VOLUME, "mountPath": str(_CA_FILE.parent), "readOnly": True}] if spec.ca_bundle else []),
        ],
    }


def pod_settings(manifest: DMDDistillation, stage: Stage) -> PodSettings:
    """The manifest's settings of the pods of `stage`; preflight takes no accelerator, only memory and the template."""
    if stage is Stage.PREFLIGHT:
        memory = {"requests": {"memory": PREFLIGHT_MEMORY}}
        return PodSettings(resources=memory, pod_template=_without_resources(manifest.spec.workers.pod_template))
    resources, template = (_settings(manifest.spec, name) for name in _sources(manifest.spec, stage))
    return PodSettings(resources=resources.resources, pod_template=template.pod_template)


def pod_fields(manifest: DMDDistillation, stage: Stage) -> tuple[str, ...]:
    """The fields of the manifest that the pods of `stage` are made of, as far as they are set."""
    resources, template = _sources(manifest.spec, stage)
    takes_resources = stage is not Stage.PREFLIGHT and _settings(manifest.spec, resources).resources
    takes_template = _settings(manifest.spec, template).pod_template
    return (
        *([f"spec.{resources}.resources"] if takes_resources else []),
        *([f"spec.{template}.podTemplate"] if takes_template else []),
    )


def _sources(spec: Spec, stage: Stage) -> tuple[str, str]:
    """The fields of `spec` that the resources and the template of a stage's pods come from."""
    match stage:
        case Stage.PREPARE:
            return "pairWorkers", "pairWorkers"
        case Stage.EVALUATE:
            own = spec.evaluation
            return "evaluation" if own.resources else "workers", "evaluation" if own.pod_template else "workers"
        case Stage.PREFLIGHT | Stage.DISTILL:
            return "workers", "workers"


def _settings(spec: Spec, name: str) -> PodSettings:
    return {"workers": spec.workers, "pairWorkers": spec.pair_workers, "evaluation": spec.evaluation}[name]


def _without_resources(template: dict[str, Any]) -> dict[str, Any]:
    """The template without its containers' resources; where there is no container, the API server says so."""
    spec = template.get("spec")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("containers"), list):
        return template
    containers = [
        {field: value for field, value in container.items() if field != "resources"}
        if isinstance(container, Mapping)
        else container
        for container in spec["containers"]
    ]
    return {**template, "spec": {**spec, "containers": containers}}


def _claims(manifest: DMDDistillation) -> Iterator[str]:
    """The claims that any `pvc://` of the manifest names, at any depth."""

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
