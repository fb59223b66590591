"""The digits distillation, ready to be stepped, as the benchmarks share it."""

from pathlib import Path

import torch

from dmd_api.loading import load_manifest
from dmd_api.manifest import DMDDistillation
from dmd_trainer.distillation import Distillation
from dmd_trainer.fetch import local_path
from dmd_trainer.losses import l2_regression_loss
from dmd_trainer.pairs import Pairs, download_shards, make_shard, shard_count, shard_files, shard_indices, write_shard
from dmd_trainer.solvers import teacher_solver
from dmd_trainer.storage import FileStorage
from dmd_trainer.teachers import Teacher, load_teacher

EXAMPLE = Path(__file__).parents[1] / "examples" / "distill-digits.yaml"
PAIRS = 256


def digits_distillation(folder: Path, rank: int | None = None) -> tuple[DMDDistillation, Distillation]:
    """One process's share of the example's distillation, with a few pairs made below `folder`.

    Args:
        folder: this process's own.
        rank: this process's among the example's; None: it is alone, with one process's share of the batch.
    """
    torch.set_num_threads(1)
    manifest = load_manifest(EXAMPLE)
    teacher = load_teacher(local_path(manifest.spec.teacher.uri, folder))
    conditions = teacher.conditions(10)
    pairs = make_pairs(teacher, folder)
    if rank is not None:
        world_size = manifest.world_size
        return manifest, Distillation(teacher, manifest.spec, conditions, pairs, l2_regression_loss, rank, world_size)
    share = manifest.spec.training.batch_size // manifest.world_size
    training = manifest.spec.training.model_copy(update={"batch_size": share})
    spec = manifest.spec.model_copy(update={"training": training})
    return manifest, Distillation(teacher, spec, conditions, pairs, l2_regression_loss)


def make_pairs(teacher: Teacher, folder: Path) -> Pairs:
    """A few pairs of the digits teacher, which is on the CPU, made below `folder`."""
    conditions = teacher.conditions(10)
    solver = teacher_solver(teacher, "Heun", 4)
    storage = FileStorage(folder)
    for shard in range(shard_count(PAIRS)):
        content = make_shard(
            solver, conditions, teacher.sample_shape, shard_indices(shard, PAIRS), 0, torch.device("cpu")
        )
        write_shard(storage, shard, content)
    assert not download_shards(storage, PAIRS, folder / "local")
    return Pairs(shard_files(PAIRS, folder / "local"), PAIRS)
