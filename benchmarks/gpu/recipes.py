"""The published recipes as one GPU's share of them, with the published networks and random weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bare_passes import RealRows, Rows
from dmd_api.loading import load_manifest
from dmd_api.manifest import DMDDistillation
from dmd_trainer.conditions.base import Conditions, Drawn
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.architecture import Architecture, known_architecture
from dmd_trainer.families.autoencoder import Pixels
from dmd_trainer.families.family import WIDTH
from dmd_trainer.families.teacher import WEIGHTS, Teacher, place_network

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = 16
SEED = 0


@dataclass(frozen=True)
class Recipe:
    """One GPU's share of an example.

    Attributes:
        example: its file's stem.
        architecture: of its teacher.
        micro_batch: samples at once, all that the GPU has of a batch; None: as the example has them.
        fake_score_updates: None: as the example has them.
        training: fields of `spec.training` that are changed.
    """

    example: str
    architecture: str
    micro_batch: int | None = None
    fake_score_updates: int | None = None
    training: tuple[tuple[str, Any], ...] = ()

    def manifest(self, miniature: bool) -> DMDDistillation:
        """The example with one process, L2 in the place of LPIPS, and a single micro-batch."""
        manifest = load_manifest(EXAMPLES / f"{self.example}.yaml")
        spec = manifest.spec
        share = spec.training.batch_size // manifest.world_size
        size = 1 if miniature else self.micro_batch or spec.training.micro_batch_size or share
        method: dict[str, Any] = {}
        if spec.method.regression is not None:
            method["regression"] = spec.method.regression.model_copy(update={"loss": "L2", "features": None})
        if self.fake_score_updates is not None:
            method["fake_score_updates"] = self.fake_score_updates
        # Random weights say nothing of losses.
        training = {"batch_size": size, "micro_batch_size": size, "max_loss": 1e15, **dict(self.training)}
        changes = {
            "method": spec.method.model_copy(update=method),
            "training": spec.training.model_copy(update=training),
            "workers": spec.workers.model_copy(update={"nodes": 1, "processes_per_node": 1}),
        }
        return manifest.model_copy(update={"spec": spec.model_copy(update=changes)})

    def networks(self, miniature: bool) -> Architecture:
        """The architecture, shrunken in miniature."""
        published = known_architecture(self.architecture)
        return shrunken(published) if miniature else published


def shrunken(architecture: Architecture) -> Architecture:
    """As many levels of the same kinds, a few channels wide."""
    decoder = architecture.decoder
    if decoder is not None:
        widths = [8] * len(decoder["block_out_channels"])
        decoder = decoder | {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 4}
    network = architecture.family.shrink(architecture.network, WIDTH)
    return replace(architecture, network=network, decoder=decoder, encoder_parameters=0)


def materialise(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights on the device for a network that is on the meta device; the same every time."""
    if any(True for _ in network.buffers()):
        raise ValueError("a network with buffers: random weights are not enough")
    # diffusers' own `to` warns of what it might keep in float32.
    nn.Module.to(network, dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network.eval()


@dataclass(frozen=True)
class RandomTeacher(Teacher):
    """A teacher without a folder.

    Attributes:
        architecture: makes its trainable copies.
    """

    architecture: Architecture | None = None

    def trainable_network(self) -> nn.Module:
        assert self.architecture is not None
        device = self.denoiser.schedule.sigmas.device
        return materialise(self.architecture.build_network(), device).requires_grad_(True)


def random_teacher(manifest: DMDDistillation, architecture: Architecture, device: torch.device) -> RandomTeacher:
    """The manifest's teacher with random weights, placed as the manifest says; without text encoders and VAE."""
    wanted = manifest.spec.teacher
    network = materialise(architecture.build_network(), device, WEIGHTS[wanted.weights]).requires_grad_(False)
    if wanted.offload:
        network.cpu()
    place_network(network, device, wanted.weights, wanted.offload)
    narrow = manifest.spec.training.precision == "bf16" or wanted.weights != "fp32"
    return RandomTeacher(
        family=architecture.family,
        denoiser=Denoiser(
            network,
            schedule_from_scheduler(architecture.scheduler).to(device),
            Prediction.EPSILON,
            torch.bfloat16 if narrow else None,
        ),
        directory=Path(),
        sample_shape=architecture.sample_shape,
        num_class_embeds=None,
        digest="random",
        autoencoder=Pixels(),
        offloaded=wanted.offload,
        architecture=architecture,
    )


class RandomPrompts(Conditions):
    """Random embeddings in half precision on the CPU, as those of prompts are kept."""

    def __init__(self, architecture: Architecture) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._rows = {
            key: torch.randn(zeros.shape, generator=generator).half()
            for key, zeros in architecture.conditions(PROMPTS).items()
        }

    @property
    def identity(self) -> str:
        return "random-prompts"

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        return {"prompt": random.integers(0, PROMPTS)}

    def in_turn(self, count: int) -> dict[str, Tensor]:
        return {"prompt": torch.arange(count) % PROMPTS}

    def embed(self, drawn: Drawn, device: torch.device) -> dict[str, Tensor]:
        return {key: rows[drawn["prompt"]].to(device) for key, rows in self._rows.items()}

    @property
    def negative(self) -> dict[str, Tensor]:
        return {key: rows[:1] for key, rows in self._rows.items()}


def build(manifest: DMDDistillation, architecture: Architecture, device: torch.device) -> Distillation:
    """The distillation of a manifest, with data that costs nothing to read."""
    teacher = random_teacher(manifest, architecture, device)
    pairs = Rows(teacher) if manifest.spec.method.regression is not None else None
    images = RealRows(teacher) if manifest.spec.method.gan is not None else None
    data = TrainingData(RandomPrompts(architecture), pairs, images)
    return Distillation(teacher, manifest.spec, data, l2_regression_loss)
