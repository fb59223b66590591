"""Prepare: the teacher's ODE pairs, shard by shard; what is finished is not made again."""

from collections.abc import Iterable
from typing import Any

from dmd_api.manifest import Regression
from dmd_trainer.data.pairs import make_shard, shard_count, shard_indices, shard_is_intact, write_shard
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.inputs import read_teacher, training_conditions


def run(context: StageContext) -> dict[str, Any]:
    """Makes this worker's share of the shards. Workers know nothing of each other: shard i is worker i mod N's."""
    spec = context.manifest.spec
    regression = spec.method.regression
    if regression is None:
        return {"pairs": 0}
    mine = range(context.rank, shard_count(regression.pairs), context.world_size)
    context.progress.update(activity="loading the teacher", unit="pairs", total=regression.pairs)
    teacher = read_teacher(context)
    make_shards(context, teacher, regression, mine)
    return {"pairs": regression.pairs, "shards": shard_count(regression.pairs)}


def make_shards(context: StageContext, teacher: Teacher, regression: Regression, shards: Iterable[int]) -> None:
    """Makes those of `shards` that are not in storage as their hashes say.

    Raises:
        InterruptedRunError: this process was told to stop; finished shards are kept.
    """
    spec = context.manifest.spec
    conditions = training_conditions(context, teacher)
    guidance = spec.teacher.guidance_scale
    solver = teacher_solver(teacher, regression.solver, regression.solver_steps, guidance, conditions.negative)
    context.progress.update(activity="solving the teacher's ODE")

    def advance(count: int) -> None:
        # Workers know nothing of each other; they are equally fast, near enough for a progress bar.
        context.progress.advance(count * context.world_size)
        context.raise_if_stopped()

    for shard in shards:
        context.raise_if_stopped()
        indices = shard_indices(shard, regression.pairs)
        if shard_is_intact(context.storage, shard):
            context.progress.advance(len(indices) * context.world_size)
            continue
        content = make_shard(
            solver, conditions, teacher.sample_shape, indices, spec.training.seed, context.device, advance
        )
        write_shard(context.storage, shard, content)
