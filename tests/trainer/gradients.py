"""Run by torchrun: the gradients and weights of two float64 steps, for test_distributed.py."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch.distributed.tensor import DTensor

from dmd_api.loading import parse_manifest
from dmd_trainer.conditions.base import Conditions, Drawn
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.data.pairs import Pairs, shard_files
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.distributed.collectives import rank_and_world_size
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.storage import FileStorage


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or all shards of one: every rank asks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class DoubleConditions(PromptConditions):
    """Embeddings in float64, as the networks are."""

    def embed(self, drawn: Drawn, device: torch.device) -> dict[str, torch.Tensor]:
        return {key: value.double() for key, value in super().embed(drawn, device).items()}

    @property
    def negative(self) -> Condition:
        return {key: value.double() for key, value in super().negative.items()}


def main(manifest: str, pairs: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    spec = parse_manifest(yaml.safe_load(manifest)).spec
    teacher = load_teacher(Path(spec.teacher.uri.removeprefix("file://")))
    teacher = replace(teacher, denoiser=teacher.denoiser.with_network(teacher.denoiser.network.double()))
    made: Pairs | None = None
    if teacher.takes_text:
        storage = FileStorage(Path(f"{out}.embeddings-{dist.get_rank()}"))
        encoder = partial(TextEncoder, teacher.directory, torch.device("cpu"))
        embeddings = PromptEmbeddings(["red apple", "rocket"], teacher.digest, storage, storage.root / "local", encoder)
        conditions: Conditions = DoubleConditions(embeddings=embeddings, added=teacher.added_conditions)
    else:
        conditions = teacher.conditions(10)
        assert spec.method.regression is not None
        made = Pairs(shard_files(spec.method.regression.pairs, Path(pairs)), spec.method.regression.pairs)
    distillation = Distillation(
        teacher, spec, TrainingData(conditions, made), l2_regression_loss, rank_and_world_size()
    )
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        distillation.step()
        for name, network in (
            ("generator", distillation.generator_network.module),
            ("fake_score", distillation.fake_score_network.module),
        ):
            for key, parameter in network.named_parameters():
                if parameter.requires_grad:
                    found[f"{step}/{name}/{key}/gradient"] = whole(parameter.grad).clone()
                found[f"{step}/{name}/{key}"] = whole(parameter.detach()).clone()
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
