"""A run's pairs: makes the shards that are missing, and copies all of them to the node that trains."""

from collections.abc import Iterable

from dmd_api.errors import InfrastructureError
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.data.pairs import (
    Pairs,
    download_shards,
    make_shard,
    shard_files,
    shard_indices,
    shard_is_intact,
    write_shard,
)
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.distributed.collectives import barrier, broadcast_json, local_rank
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext


def make_shards(context: StageContext, teacher: Teacher, conditions: Conditions, shards: Iterable[int]) -> None:
    """Makes those of `shards` that are not in storage as their hashes say.

    Raises:
        InterruptedRunError: this process was told to stop; finished shards are kept.
    """
    spec = context.manifest.spec
    regression = spec.method.regression
    assert regression is not None, "there are no pairs without a regression"
    guidance = spec.teacher.guidance_scale
    solver = teacher_solver(teacher.denoiser, regression.solver, regression.solver_steps, guidance, conditions.negative)
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


def read_pairs(context: StageContext, teacher: Teacher, conditions: Conditions) -> Pairs | None:
    """The pairs, copied to this node, by all ranks together; None where the method has none.

    A shard that was damaged since it was prepared is regenerated.

    Raises:
        InfrastructureError: it was damaged again.
    """
    regression = context.manifest.spec.method.regression
    if regression is None:
        return None
    context.progress.update(activity="reading the pairs")
    folder = context.scratch / "pairs"

    def fetch() -> list[int]:
        damaged = download_shards(context.storage, regression.pairs, folder) if local_rank() == 0 else []
        return broadcast_json(damaged)

    if damaged := fetch():
        if context.rank == 0:
            names = ", ".join(str(shard) for shard in damaged)
            context.progress.message(f"pairs: shards {names} are missing or damaged and will be regenerated")
            make_shards(context, teacher, conditions, damaged)
        barrier()
        if damaged := fetch():
            where = context.storage.uri_of("pairs/")
            raise InfrastructureError(f"{where}: shards {damaged} are damaged again; is the storage in order?")
    barrier()
    return Pairs(shard_files(regression.pairs, folder), regression.pairs)
