"""The checks of preflight, each of one thing that can be wrong with a run."""

import os

import torch

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.spec import Method, Spec
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.initial_weights import check_initial_weights
from dmd_trainer.evaluation.clip_score import wanted_clip_score
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.reference import check_reference
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.export import check_exportable
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.inputs import (
    compare_with_pairs,
    evaluation_conditions,
    initial_weights,
    real_images,
    training_conditions,
)


def check_credentials(spec: Spec) -> None:
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


def check_storage(context: StageContext) -> None:
    """Writes, reads and deletes, as the later stages will."""
    key = "preflight/probe"
    context.storage.write(key, b"probe")
    if context.storage.read(key) != b"probe":
        raise BadInputError(f"{context.storage.uri_of(key)}: what was written is not what is read; check the storage")
    context.storage.delete("preflight/")


def check_teacher(context: StageContext, teacher: Teacher) -> None:
    """Conditions, solver, guidance, time step, and one call of the network."""
    spec = context.manifest.spec
    conditions = training_conditions(context, teacher)
    scale, negative = spec.teacher.guidance_scale, conditions.negative
    solver, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
    teacher_solver(teacher.denoiser, solver, steps, scale, negative)
    length = len(teacher.denoiser.schedule)
    for field, timestep in _timesteps(spec.method):
        if timestep is not None and timestep >= length:
            raise BadInputError(f"spec.method.{field}: {timestep}, but the schedule's last index is {length - 1}")
    check_exportable(teacher, spec.method)
    if spec.method.gan is not None and teacher.family.tap(teacher.denoiser.network) is None:
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


def _timesteps(method: Method) -> list[tuple[str, int | None]]:
    """The indices of the teacher's schedule that a manifest may name, by their fields below `spec.method`."""
    named = [("generatorTimestep", method.generator_timestep)]
    if method.gan is not None:
        named.append(("gan.maxTimestep", method.gan.max_timestep))
    if method.guidance_noise is not None:
        named.append(("guidanceNoise.maxTimestep", method.guidance_noise.max_timestep))
    return named


def check_evaluation(context: StageContext, teacher: Teacher) -> None:
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
    found = check_reference(
        spec.evaluation.reference,
        extractor,
        teacher.image_shape[1:],
        context.scratch,
        context.shared_storage,
        spec.evaluation.resolution,
    )
    context.progress.message(found)
    wanted_clip_score(spec.evaluation, context.scratch, context.device)
    evaluation_conditions(context, teacher)
    compare_with_pairs(context, teacher)


def check_starting_weights(context: StageContext, teacher: Teacher) -> None:
    """An earlier run's weights fit the teacher's network."""
    initial = initial_weights(context)
    check_initial_weights(teacher.denoiser.network, initial.generator, "generator")
    if initial.fake_score is not None:
        network = teacher.trainable_network()
        tap = teacher.family.tap(network) if context.manifest.spec.method.gan is not None else None
        check_initial_weights(FakeScore(network, tap), initial.fake_score, "fakeScore")


def check_real_images(context: StageContext, teacher: Teacher) -> None:
    """There are real images for the GAN term, and some from everywhere can be read; says what was found."""
    if context.manifest.spec.method.gan is not None:
        context.progress.message(real_images(context, teacher).check())
