"""Preflight: teacher, data, storage and tracking answer and fit together, before any pair is made."""

import os
from collections.abc import Callable
from typing import Any

import torch

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.manifest import Spec
from dmd_trainer.diffusion.solvers import guide, teacher_solver
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.initial_weights import check_initial_weights
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.reference import check_reference
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.export import check_exportable
from dmd_trainer.publishing.registry import check_reachable
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.inputs import (
    clip_score,
    compare_with_pairs,
    evaluation_conditions,
    initial_weights,
    read_teacher,
    real_images,
    training_conditions,
)


def run(context: StageContext) -> dict[str, Any]:
    """Runs all checks; the first that fails ends the stage with its error.

    Raises:
        BadInputError: what the manifest names is not there or does not fit.
        InfrastructureError: storage or tracking do not answer.
    """
    spec = context.manifest.spec
    teacher: list[Teacher] = []

    def load() -> None:
        teacher.append(read_teacher(context))

    checks: list[tuple[str, Callable[[], object]]] = [
        ("credentials", lambda: _check_credentials(spec)),
        ("storage", lambda: _check_storage(context)),
        ("tracking", lambda: check_reachable(spec.tracking.uri or "")),
        ("the teacher", load),
        ("teacher and manifest", lambda: _check_teacher(context, teacher[0])),
        ("weights to start from", lambda: _check_initial_weights(context, teacher[0])),
        ("real images", lambda: _check_real_images(context, teacher[0])),
        ("evaluation", lambda: _check_evaluation(context, teacher[0])),
    ]
    context.progress.update(unit="checks", total=len(checks))
    for name, check in checks:
        context.progress.update(activity=f"checking {name}")
        context.raise_if_stopped()
        check()
        context.progress.advance(1)
    return {"teacher": spec.teacher.uri, "teacherDigest": teacher[0].digest[:12]}


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


def _check_teacher(context: StageContext, teacher: Teacher) -> None:
    """Conditions, solver, guidance, time step, and one call of the network."""
    spec = context.manifest.spec
    conditions = training_conditions(context, teacher)
    scale, negative = spec.teacher.guidance_scale, conditions.negative
    regression = spec.method.regression
    if regression is not None:
        teacher_solver(teacher, regression.solver, regression.solver_steps, scale, negative)
    guide(teacher, scale, negative)
    timestep, length = spec.method.generator_timestep, len(teacher.denoiser.schedule)
    if timestep is not None and timestep >= length:
        raise BadInputError(f"spec.method.generatorTimestep: {timestep}, but the schedule's last index is {length - 1}")
    check_exportable(teacher, spec.method)
    if spec.method.gan is not None and getattr(teacher.denoiser.network, "mid_block", None) is None:
        raise BadInputError("spec.method.gan: this teacher is no UNet and has no bottleneck; leave method.gan out")
    noise = torch.zeros(1, *teacher.sample_shape, device=context.device)
    condition = conditions.embed(conditions.in_turn(1), context.device)
    middle = torch.tensor([length // 2], device=context.device)
    with torch.no_grad():
        try:
            found = teacher.denoiser(noise, teacher.denoiser.schedule.at(middle), condition)
        except RuntimeError as error:
            # Shapes that do not fit: a text encoder of another width, a class table of another size.
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"spec.teacher.uri: {spec.teacher.uri}: its parts do not fit each other ({reason}); save the pipeline "
                "again from parts that were trained together"
            ) from error
    if not torch.isfinite(found).all():
        raise BadInputError(f"spec.teacher.uri: {spec.teacher.uri} predicts NaN; its weights are damaged")


def _check_evaluation(context: StageContext, teacher: Teacher) -> None:
    """The feature network loads, takes the teacher's images, and there are real images of their size."""
    spec = context.manifest.spec
    device = torch.device("cpu")
    extractor = load_features(
        spec.evaluation.features, context.scratch, device, clean=spec.evaluation.resolution is not None
    )
    channels = teacher.image_shape[0]
    if extractor.channels not in (None, channels):
        raise BadInputError(
            f"spec.evaluation.features: {extractor.name} takes images with {extractor.channels} channel(s), "
            f"the teacher's have {channels}"
        )
    check_reference(
        spec.evaluation.reference,
        extractor,
        teacher.image_shape[1:],
        context.scratch,
        context.shared_storage,
        spec.evaluation.resolution,
    )
    clip_score(context)
    evaluation_conditions(context, teacher)
    compare_with_pairs(context, teacher)


def _check_initial_weights(context: StageContext, teacher: Teacher) -> None:
    """An earlier run's weights fit the teacher's network."""
    initial = initial_weights(context)
    check_initial_weights(teacher.denoiser.network, initial.generator, "generator")
    if initial.fake_score is not None:
        gan = context.manifest.spec.method.gan is not None
        check_initial_weights(FakeScore(teacher.trainable_network(), gan=gan), initial.fake_score, "fakeScore")


def _check_real_images(context: StageContext, teacher: Teacher) -> None:
    """There are real images for the GAN term, and the first can be read."""
    if context.manifest.spec.method.gan is not None:
        real_images(context, teacher).check()
