"""Distill: trains the generator to the last update, from the newest intact checkpoint on."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import InfrastructureError
from dmd_trainer.checkpoints import Checkpointer
from dmd_trainer.conditions import Conditions, to_device
from dmd_trainer.context import StageContext
from dmd_trainer.distillation import Distillation
from dmd_trainer.distributed import barrier, broadcast_object, local_rank
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.measure import Samples, measure, score
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.fetch import local_path
from dmd_trainer.generator import OneStepGenerator
from dmd_trainer.keyed import Draws
from dmd_trainer.pairs import Pairs, download_shards, shard_files
from dmd_trainer.regression import regression_loss
from dmd_trainer.stages.prepare import make_shards
from dmd_trainer.teachers import Teacher, load_teacher
from dmd_trainer.training import train

GRID_ROWS, GRID_COLUMNS = 4, 10
HISTORY = "history.json"


def run(context: StageContext) -> dict[str, Any]:
    """Trains; leaves the best generator below `generator/` and the curves in `history.json`."""
    spec = context.manifest.spec
    context.progress.update(activity="loading the teacher")
    teacher = load_teacher(
        local_path(spec.teacher.uri, context.scratch), device=context.device, autocast=context.autocast
    )
    labels = spec.data.class_labels
    conditions = teacher.conditions(labels.count if labels else None)
    distillation = Distillation(
        teacher,
        spec,
        conditions,
        _pairs(context, teacher),
        regression_loss(spec.method.regression, context.scratch, context.device),
        context.rank,
        context.world_size,
    )
    checkpointer = Checkpointer(
        context.storage,
        context.scratch,
        context.attempt,
        spec.training.keep_checkpoints,
        context.progress.message if context.rank == 0 else lambda text: None,
    )
    evaluate = _evaluation(context, teacher, conditions)
    best, history = train(
        context, distillation, checkpointer, evaluate, partial(grid_samples, context, teacher, conditions)
    )
    checkpointer.close()
    if context.rank == 0:
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


def _evaluation(context: StageContext, teacher: Teacher, conditions: Conditions) -> Any:
    """What measures a generator during training: FID, and accuracy where it is asked for."""
    spec = context.manifest.spec.evaluation
    extractor = load_features(spec.features, context.scratch, context.device)
    height, width = teacher.sample_shape[1:]
    real: Tensor | None = None
    if context.rank == 0:
        real = reference_features(
            spec.reference, extractor, (height, width), context.shared_storage, context.scratch, context.device
        )
    samples = evaluation_samples(context, teacher, conditions)

    def evaluate(generator: OneStepGenerator) -> dict[str, float]:
        measured = measure(generator, extractor, samples)
        # Only cheap metrics here: manifold distances are for the end.
        scores = score(measured, real, {"Accuracy"} & set(spec.metrics)) if real is not None else {}
        return broadcast_object(scores)

    return evaluate


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
    )


@torch.inference_mode()
def grid_samples(context: StageContext, teacher: Teacher, conditions: Conditions, sampler: Any) -> Tensor:
    """Images [N, C, H, W] at noise that never changes; with classes, column after column."""
    count = GRID_ROWS * GRID_COLUMNS
    draws = Draws(context.manifest.spec.training.seed, "grid", 0, range(count))
    condition = conditions.draw(draws)
    if "class_labels" in condition and conditions.class_count:
        condition["class_labels"] = torch.arange(count) % conditions.class_count
    noise = draws.normal(teacher.sample_shape).to(context.device)
    images: Tensor = sampler(noise, to_device(condition, context.device))
    return images.clamp(-1, 1).cpu()
