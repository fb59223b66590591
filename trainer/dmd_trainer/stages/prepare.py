"""Prepare: makes the teacher's ODE pairs, shard by shard; finished shards are kept."""

from typing import Any

from dmd_trainer.data.pairs import shard_count
from dmd_trainer.data.teacher_pairs import make_shards
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.checks import check_weights
from dmd_trainer.stages.inputs import read_teacher, training_conditions


def run(context: StageContext) -> dict[str, Any]:
    """Makes this worker's share of the shards. Workers know nothing of each other: shard i is worker i mod N's."""
    regression = context.manifest.spec.method.regression
    if regression is None:
        return {"pairs": 0}
    mine = range(context.rank, shard_count(regression.pairs), context.world_size)
    context.progress.update(activity="loading the teacher", unit="pairs", total=regression.pairs)
    teacher = read_teacher(context)
    conditions = training_conditions(context, teacher)
    check_weights(context, teacher, conditions)
    make_shards(context, teacher, conditions, mine)
    return {"pairs": regression.pairs, "shards": shard_count(regression.pairs)}
