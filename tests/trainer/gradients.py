"""Run by torchrun: the gradients and weights of two float64 steps of each manifest, for test_distributed.py."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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


class References:
    """The pairs' images as real ones, for a GAN term."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, Drawn]:
        _, images, drawn = self.pairs.at(indices)
        return images, drawn

    def prefetch(self, indices: torch.Tensor) -> None:
        """Everything is in memory."""


def main(jobs: str) -> None:
    """Each job is a manifest, the folder with its pairs, and the file for what is found: imports are paid once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for manifest, pairs, out in json.loads(jobs):
        two_steps(manifest, pairs, out)
    dist.destroy_process_group()


def two_steps(manifest: Any, pairs: str, out: str) -> None:
    spec = parse_manifest(manifest).spec
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
    data = TrainingData(conditions, made, References(made) if made is not None else None)
    distillation = Distillation(teacher, spec, data, l2_regression_loss, rank_and_world_size())
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


if __name__ == "__main__":
    main(*sys.argv[1:])
