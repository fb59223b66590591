"""Preflight: teacher, data, storage and tracking answer and fit together, before any pair is made."""

import os
from collections.abc import Callable
from typing import Any

import torch

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.manifest import Spec
from dmd_trainer.context import StageContext
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.export import check_exportable
from dmd_trainer.fetch import local_path
from dmd_trainer.registry import check_reachable
from dmd_trainer.regression import regression_loss
from dmd_trainer.solvers import guide, teacher_solver
from dmd_trainer.teachers import Teacher, load_teacher


def run(context: StageContext) -> dict[str, Any]:
    """Runs all checks; the first that fails ends the stage with its error.

    Raises:
        BadInputError: what the manifest names is not there or does not fit.
        InfrastructureError: storage or tracking do not answer.
    """
    spec = context.manifest.spec
    teacher: list[Teacher] = []

    def load() -> None:
        teacher.append(load_teacher(local_path(spec.teacher.uri, context.scratch), autocast=context.autocast))

    checks: list[tuple[str, Callable[[], object]]] = [
        ("the method", lambda: _check_supported(spec)),
        ("credentials", lambda: _check_credentials(spec)),
        ("storage", lambda: _check_storage(context)),
        ("tracking", lambda: check_reachable(spec.tracking.uri or "")),
        ("the teacher", load),
        ("teacher and manifest", lambda: _check_teacher(spec, teacher[0])),
        ("evaluation", lambda: _check_evaluation(context, teacher[0])),
    ]
    context.progress.update(unit="checks", total=len(checks))
    for name, check in checks:
        context.progress.update(activity=f"checking {name}")
        context.raise_if_stopped()
        check()
        context.progress.advance(1)
    return {"teacher": spec.teacher.uri, "teacherDigest": teacher[0].digest[:12]}


def _check_supported(spec: Spec) -> None:
    """What the API can say and this version's trainer cannot do."""
    unsupported = {
        "method.name: DMD2": spec.method.name != "DMD",
        "method.initFrom": spec.method.init_from is not None,
        "data.prompts": spec.data.prompts is not None,
        "training.sharding: FSDP": spec.training.sharding != "DDP",
        "training.activationCheckpointing": spec.training.activation_checkpointing,
        "evaluation.metrics: CLIPScore": "CLIPScore" in spec.evaluation.metrics,
    }
    found = [field for field, wanted in unsupported.items() if wanted]
    if found:
        fields = ", ".join(f"spec.{field}" for field in found)
        raise BadInputError(f"{fields}: this version of the trainer cannot do that yet; leave it out")


def _check_credentials(spec: Spec) -> None:
    """MLflow's may be of two kinds, so that no single one is required of a pod; a laptop's are in its environment.

    Storage's are: a pod does not start without them.
    """
    reference = spec.tracking.credentials_secret_ref
    known = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
    if reference is not None and runtime.in_a_pod() and not known & os.environ.keys():
        raise BadInputError(
            f"spec.tracking.credentialsSecretRef: the Secret {reference.name} is not there, or has none of "
            f"{', '.join(sorted(known))}; create it"
        )


def _check_storage(context: StageContext) -> None:
    """Writes, reads and deletes, as the later stages will."""
    key = "preflight/probe"
    context.storage.write(key, b"probe")
    if context.storage.read(key) != b"probe":
        raise BadInputError(f"{context.storage.uri_of(key)}: what was written is not what is read; check the storage")
    context.storage.delete("preflight/")


def _check_teacher(spec: Spec, teacher: Teacher) -> None:
    """Conditions, solver, guidance, time step, and one call of the network."""
    labels = spec.data.class_labels
    conditions = teacher.conditions(labels.count if labels else None)
    regression = spec.method.regression
    if regression is not None:
        teacher_solver(teacher, regression.solver, regression.solver_steps, spec.teacher.guidance_scale)
    if spec.teacher.guidance_scale != 1 and conditions.null_label is None:
        raise BadInputError(
            "spec.teacher.guidanceScale: this teacher has no label for 'no class' to be guided away from; leave it at 1"
        )
    guide(teacher, spec.teacher.guidance_scale)
    timestep, length = spec.method.generator_timestep, len(teacher.denoiser.schedule)
    if timestep is not None and timestep >= length:
        raise BadInputError(f"spec.method.generatorTimestep: {timestep}, but the schedule's last index is {length - 1}")
    check_exportable(teacher)
    noise = torch.zeros(1, *teacher.sample_shape)
    condition = {} if conditions.class_count is None else {"class_labels": torch.zeros(1, dtype=torch.int64)}
    with torch.no_grad():
        found = teacher.denoiser(noise, teacher.denoiser.schedule.at(torch.tensor([length // 2])), condition)
    if not torch.isfinite(found).all():
        raise BadInputError(f"spec.teacher.uri: {spec.teacher.uri} predicts NaN; its weights are damaged")


def _check_evaluation(context: StageContext, teacher: Teacher) -> None:
    """The feature network loads, takes the teacher's images, and there are real images of their size."""
    spec = context.manifest.spec
    device = torch.device("cpu")
    extractor = load_features(spec.evaluation.features, context.scratch, device)
    channels, height, width = teacher.sample_shape
    if extractor.channels not in (None, channels):
        raise BadInputError(
            f"spec.evaluation.features: {extractor.name} takes images with {extractor.channels} channel(s), "
            f"the teacher's have {channels}"
        )
    reference_features(
        spec.evaluation.reference, extractor, (height, width), context.shared_storage, context.scratch, device
    )
    regression_loss(spec.method.regression, context.scratch, device)
