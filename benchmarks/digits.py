"""The digits distillation, ready to be stepped, as the benchmarks share it."""

from pathlib import Path

import torch

from dmd_api.loading import load_manifest
from dmd_api.manifest import DMDDistillation
from dmd_trainer.data.pairs import (
    Pairs,
    download_shards,
    make_shard,
    shard_count,
    shard_files,
    shard_indices,
    write_shard,
)
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.distributed.collectives import Ranks
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import FileStorage

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
    data = TrainingData(teacher.conditions(10), make_pairs(teacher, folder))
    if rank is not None:
        ranks = Ranks(rank, manifest.world_size)
        return manifest, Distillation(teacher, manifest.spec, data, l2_regression_loss, ranks)
    share = manifest.spec.training.batch_size // manifest.world_size
    training = manifest.spec.training.model_copy(update={"batch_size": share})
    spec = manifest.spec.model_copy(update={"training": training})
    return manifest, Distillation(teacher, spec, data, l2_regression_loss)


def make_pairs(teacher: Teacher, folder: Path) -> Pairs:
    """A few pairs of the digits teacher, which is on the CPU, made below `folder`."""
    conditions = teacher.conditions(10)
    solver = teacher_solver(teacher.denoiser, "Heun", 4)
    storage = FileStorage(folder)
    for shard in range(shard_count(PAIRS)):
        content = make_shard(
            solver, conditions, teacher.sample_shape, shard_indices(shard, PAIRS), 0, torch.device("cpu")
        )
        write_shard(storage, shard, content)
    assert not download_shards(storage, PAIRS, folder / "local")
    return Pairs(shard_files(PAIRS, folder / "local"), PAIRS)
