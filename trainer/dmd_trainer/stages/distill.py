"""Distill: trains the generator to the last update, from the newest intact checkpoint on."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dmd_api.errors import InfrastructureError
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.data.pairs import Pairs, download_shards, shard_files
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.distributed.collectives import Ranks, barrier, broadcast_object, local_rank
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.measure import Samples, measure, score
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.health.probe import HealthProbe
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
from dmd_trainer.stages.prepare import make_shards
from dmd_trainer.training.checkpoints import Checkpointer
from dmd_trainer.training.loop import train

GRID_ROWS, GRID_COLUMNS = 4, 10
HISTORY = "history.json"
FAKE_SCORE = "fake-score/weights.safetensors"
"""The fake score as it was in the end, for a second phase to start from."""


def run(context: StageContext) -> dict[str, Any]:
    """Trains; leaves the best generator below `generator/` and the curves in `history.json`."""
    spec = context.manifest.spec
    context.progress.update(activity="loading the teacher")
    teacher = read_teacher(context)
    conditions = training_conditions(context, teacher)
    pairs = _pairs(context, teacher)
    distillation = Distillation(
        teacher,
        spec,
        TrainingData(conditions, pairs, real_images(context, teacher) if spec.method.gan is not None else None),
        compare_with_pairs(context, teacher),
        Ranks(context.rank, context.world_size),
        initial_weights(context),
    )
    checkpointer = Checkpointer(
        context.storage,
        context.scratch,
        context.attempt,
        spec.training.keep_checkpoints,
        context.progress.message if context.rank == 0 else lambda text: None,
    )
    evaluate = _evaluation(context, teacher)
    best, history = train(
        context,
        distillation,
        checkpointer,
        evaluate,
        partial(grid_samples, context, teacher, conditions),
        _health_probe(context, teacher, conditions),
    )
    checkpointer.close()
    fake_score = distillation.fake_score_weights() if spec.method.name == "DMD2" else {}
    if context.rank == 0:
        if fake_score:
            context.storage.write(FAKE_SCORE, save({k: v.contiguous() for k, v in fake_score.items()}))
        context.storage.write(HISTORY, json.dumps(asdict(history)).encode())
    barrier()
    return {"steps": distillation.step_count, "bestStep": best.step, "fid": best.fid}


def _pairs(context: StageContext, teacher: Teacher) -> Pairs | None:
    """The pairs, copied to this node; a shard that was damaged since it was prepared is made anew."""
    regression = context.manifest.spec.method.regression
    if regression is None:
        return None
    context.progress.update(activity="reading the pairs")
    folder = context.scratch / "pairs"

    def fetch() -> list[int]:
        damaged = download_shards(context.storage, regression.pairs, folder) if local_rank() == 0 else []
        return broadcast_object(damaged)

    if damaged := fetch():
        if context.rank == 0:
            names = ", ".join(str(shard) for shard in damaged)
            context.progress.message(f"pairs: shards {names} are missing or damaged and are made anew")
            make_shards(context, teacher, regression, damaged)
        barrier()
        if damaged := fetch():
            where = context.storage.uri_of("pairs/")
            raise InfrastructureError(f"{where}: shards {damaged} are damaged again; is the storage in order?")
    barrier()
    return Pairs(shard_files(regression.pairs, folder), regression.pairs)


def _evaluation(context: StageContext, teacher: Teacher) -> Any:
    """What measures a generator during training: FID, and accuracy where it is asked for."""
    spec = context.manifest.spec.evaluation
    extractor = load_features(spec.features, context.scratch, context.device, clean=spec.resolution is not None)
    real: Tensor | None = None
    if context.rank == 0:
        real = reference_features(
            spec.reference,
            extractor,
            teacher.image_shape[1:],
            context.shared_storage,
            context.scratch,
            context.device,
            spec.resolution,
        )
    samples = evaluation_samples(context, teacher, evaluation_conditions(context, teacher))

    def evaluate(generator: Generator) -> dict[str, float]:
        measured = measure(generator, extractor, samples)
        # Only cheap metrics here: manifold distances are for the end.
        scores = score(measured, real, {"Accuracy"} & set(spec.metrics)) if real is not None else {}
        return broadcast_object(scores)

    return evaluate


def _health_probe(context: StageContext, teacher: Teacher, conditions: Conditions) -> HealthProbe:
    """What measures the run's health, beside images that the teacher makes as it makes the pairs."""
    spec = context.manifest.spec
    context.progress.update(activity="drawing the teacher's images")
    solver, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
    scale = spec.teacher.guidance_scale
    return HealthProbe(
        teacher,
        teacher_solver(teacher, solver, steps, scale, conditions.negative),
        conditions,
        spec.training.seed,
        context.rank,
        context.world_size,
        unguided=None if scale == 1 else teacher_solver(teacher, solver, steps),
    )


def evaluation_samples(context: StageContext, teacher: Teacher, conditions: Conditions) -> Samples:
    """Which images are measured, in training as in the end."""
    spec = context.manifest.spec
    return Samples(
        spec.evaluation.samples,
        spec.training.seed,
        spec.evaluation.batch_size,
        teacher.sample_shape,
        conditions,
        context.device,
        teacher.autoencoder,
        spec.evaluation.resolution,
        clip_score(context),
    )


# Not inference mode: a sharded network cannot be gathered in it.
@torch.no_grad()
def grid_samples(context: StageContext, teacher: Teacher, conditions: Conditions, sampler: Any) -> Tensor:
    """Images [N, C, H, W] at noise that never changes; with classes, column after column."""
    count = GRID_ROWS * GRID_COLUMNS
    random = KeyedRandom(context.manifest.spec.training.seed, "grid", 0, range(count))
    conditions.draw(random)
    noise = random.normal(teacher.sample_shape).to(context.device)
    condition = conditions.embed(conditions.in_turn(count), context.device)
    return teacher.autoencoder.decode(sampler(noise, condition)).clamp(-1, 1).cpu()
