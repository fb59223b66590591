"""Distill: trains the generator to the last update, from the newest intact checkpoint on."""

from typing import Any

from safetensors.torch import save

from dmd_trainer.data.teacher_pairs import read_pairs
from dmd_trainer.distributed.collectives import Ranks, barrier
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.evaluation.evaluator import Evaluator
from dmd_trainer.evaluation.grid import Grid
from dmd_trainer.health.probe import HealthProbe
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.checks import check_weights
from dmd_trainer.stages.inputs import (
    compare_with_pairs,
    evaluation_conditions,
    initial_weights,
    read_teacher,
    real_images,
    training_conditions,
)
from dmd_trainer.training.checkpoints import Checkpointer
from dmd_trainer.training.loop import Instruments, TrainingLoop

FAKE_SCORE = "fake-score/weights.safetensors"
"""The fake score as it was in the end, for a second phase to start from."""


def run(context: StageContext) -> dict[str, Any]:
    """Trains; leaves the best generator below `generator/` and the curves in `history.json`."""
    spec = context.manifest.spec
    context.progress.update(activity="loading the teacher")
    teacher = read_teacher(context)
    conditions = training_conditions(context, teacher)
    if spec.method.regression is None:  # otherwise preparing the pairs has shown it
        check_weights(context, teacher, conditions)
    data = TrainingData(
        conditions,
        read_pairs(context, teacher, conditions),
        real_images(context, teacher) if spec.method.gan is not None else None,
    )
    loss, start = compare_with_pairs(context, teacher), initial_weights(context)
    context.progress.update(activity="setting up the networks")
    distillation = Distillation(teacher, spec, data, loss, Ranks(context.rank, context.world_size), start)
    checkpointer = Checkpointer(context)
    evaluator = Evaluator(context, teacher, evaluation_conditions(context, teacher))
    instruments = Instruments(
        evaluator.training_scores(),
        Grid(context, teacher, conditions),
        HealthProbe.of_run(context, teacher, conditions),
    )
    loop = TrainingLoop(context, distillation, checkpointer, instruments)
    loop.run()
    checkpointer.close()
    context.progress.update(activity="writing what evaluating needs")
    fake_score = distillation.fake_score_weights() if spec.method.name == "DMD2" else {}
    if context.rank == 0:
        if fake_score:
            context.storage.write(FAKE_SCORE, save({k: v.contiguous() for k, v in fake_score.items()}))
        loop.history.write(context.storage)
    barrier()
    return {"steps": distillation.step_count, "bestStep": loop.best.step, "fid": loop.best.fid}
