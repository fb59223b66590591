"""Teachers, loaded from diffusers' format."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmd_api.errors import BadInputError, naming, refusing
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.conditions.labels import ClassLabels, Unconditional
from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.prediction import prediction_of
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.families.autoencoder import Autoencoder, Pixels
from dmd_trainer.families.family import Family
from dmd_trainer.families.loading import META, load_part, part_config
from dmd_trainer.families.pipelines import SAVE_AGAIN, read_index
from dmd_trainer.families.table import NETWORKS, find_family

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""What computes with frozen weights; those of fp8 are kept in `torch.float8_e4m3fn` between their layers' calls."""


@dataclass(frozen=True)
class Teacher:
    """A frozen diffusion model and what there is to know about it.

    Attributes:
        family: what it is one of.
        denoiser: the network behind its preconditioning; its parameters require no gradient.
        directory: the diffusers pipeline it came from.
        sample_shape: (C, H, W) of what it denoises.
        num_class_embeds: how many labels its network embeds; None where it embeds none.
        digest: SHA-256 of its weights and configurations, which keys what is cached about it; empty without weights.
        autoencoder: between images and what it denoises.
        offloaded: whether its network's weights stay in the host's memory between calls.
    """

    family: Family
    denoiser: Denoiser
    directory: Path
    sample_shape: tuple[int, int, int]
    num_class_embeds: int | None
    digest: str
    autoencoder: Pixels
    offloaded: bool = False

    @property
    def takes_text(self) -> bool:
        """Whether it is conditioned on prompts."""
        return self.family.takes_text

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        channels, height, width = self.sample_shape
        scale = self.autoencoder.scale
        return self.autoencoder.image_channels or channels, height * scale, width * scale

    @property
    def added_conditions(self) -> Condition:
        """The arguments of the network besides text, each [1, ...]."""
        _, height, width = self.image_shape
        return self.family.added_conditions(self.denoiser.network, (height, width))

    def trainable_network(self) -> nn.Module:
        """A copy of its network in float32 or wider, all of it trainable, on the teacher's device."""
        network = self.denoiser.network
        # What is narrow has lost digits, and what comes and goes by hooks cannot be copied.
        if self.offloaded or any(p.dtype.itemsize < 4 for p in network.parameters()):
            device = self.denoiser.schedule.sigmas.device
            return _load_network(self.directory, self.family).to(device).requires_grad_(True)
        # Evaluation mode stays: a distilled network has no use for dropout.
        return copy.deepcopy(network).requires_grad_(True)

    def conditions(self, class_count: int | None) -> Conditions:
        """The conditions this teacher can be given with `class_count` classes (None: unconditional).

        Raises:
            BadInputError: the teacher embeds another number of classes.
        """
        if self.takes_text:
            raise BadInputError("spec.data.prompts: missing; the teacher takes text: give the URI of prompts")
        embedded = self.num_class_embeds
        if (class_count is None) != (embedded is None):
            wants = "no class labels" if embedded is None else f"class labels (it embeds {embedded})"
            raise BadInputError(f"spec.data.classLabels: the teacher takes {wants}; make the manifest agree with it")
        if class_count is None or embedded is None:
            return Unconditional()
        if class_count not in (embedded, embedded - 1):
            raise BadInputError(
                f"spec.data.classLabels.count: {class_count}, but the teacher embeds {embedded} labels; "
                f"use {embedded}, or {embedded - 1} where the last one stands for no class"
            )
        return ClassLabels(class_count, class_count if class_count == embedded - 1 else None)


@naming("spec.teacher.uri")
def load_teacher(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    weights: str = "fp32",
    offload: bool = False,
) -> Teacher:
    """Loads a teacher from a folder in diffusers format.

    Args:
        directory: holds `model_index.json`, `scheduler/`, `unet/` or `transformer/`, and `vae/` for latents.
        device: where the network goes; on the meta device it has no weights, and none are read but their names, dtypes
            and shapes (the noise schedule stays on the CPU).
        autocast: the dtype that the network runs in, see `Denoiser`.
        weights: what the frozen weights are kept in: fp32, bf16 or fp8.
        offload: whether they stay in the host's memory between calls.

    Raises:
        BadInputError: it is no diffusers pipeline, or one of its parts is missing, of a kind not known here, or does
            not load as its own library loads it.
    """
    on = torch.device(device)
    read_index(directory)
    with refusing(f"{directory}: its configurations cannot be used", SAVE_AGAIN):
        scheduler = part_config(directory, "scheduler", "scheduler_config.json")
        family = _family(directory, scheduler)
        schedule = schedule_from_scheduler(family.pipeline_scheduler(scheduler))
        prediction = prediction_of(scheduler)
        network = _load_network(directory, family, on).requires_grad_(False)
        sample_shape = _sample_shape(directory, family, network)
        statistics, dtype = family.latent_statistics, WEIGHTS[weights]
        autoencoder = Autoencoder(directory, statistics, dtype, on) if family.takes_text else Pixels()
    empty = on.type == META
    if not empty:
        place_network(network, on, weights, offload)
    classes = getattr(network.config, "num_class_embeds", None)
    return Teacher(
        family=family,
        # Weights of 8 or 16 bits have no products with float32: their network runs in bfloat16.
        denoiser=Denoiser(
            network,
            schedule if empty else schedule.to(on),
            prediction,
            autocast if weights == "fp32" else torch.bfloat16,
        ),
        directory=directory,
        sample_shape=sample_shape,
        num_class_embeds=classes if getattr(network, "class_embedding", None) is not None else None,
        digest="" if empty else _digest(directory),
        autoencoder=autoencoder.to(on),
        offloaded=offload and not empty,
    )


def _family(directory: Path, scheduler: dict[str, Any]) -> Family:
    part = "transformer" if (directory / "transformer").is_dir() else "unet"
    config = part_config(directory, part)
    family = find_family(config, scheduler)
    if family is None or family.part != part:
        raise BadInputError(
            f"{directory}/{part}: {config.get('_class_name')} is not supported; use a {' or '.join(NETWORKS)}"
        )
    if family.takes_text and (kind := part_config(directory, "vae")["_class_name"]) != "AutoencoderKL":
        # Loaded as the one that is known it would have random weights.
        raise BadInputError(f"{directory}/vae: a {kind} is not supported, only AutoencoderKL; use another teacher")
    family.check_configurations(config, scheduler)
    return family


def _load_network(directory: Path, family: Family, device: torch.device | None = None) -> Any:
    """In float32, on the CPU or, if that is asked for, without weights."""
    kind = family.network_class(part_config(directory, family.part))
    options = {"device_map": META} if device is not None and device.type == META else {}
    return load_part(directory, family.part, kind, **options).float().eval()


def _sample_shape(directory: Path, family: Family, network: Any) -> tuple[int, int, int]:
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if not height or network.config.in_channels != network.config.out_channels:
        raise BadInputError(
            f"{directory}/{family.part}/config.json: needs a sample_size and as many out_channels as "
            "in_channels; inpainting and depth networks, which take more, are not supported"
        )
    return int(network.config.in_channels), int(height), int(width)


def place_network(network: Any, device: torch.device, weights: str, offload: bool) -> None:
    """Brings a frozen network to where and how it is kept, by diffusers' own means."""
    if weights == "bf16":
        network.to(torch.bfloat16)
    elif weights == "fp8":
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    if offload:
        streams = device.type == "cuda"  # the next layer's weights come while this one computes
        network.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=streams)
    else:
        network.to(device)


def _digest(directory: Path) -> str:
    """Of what decides the teacher's output: the configurations and weights, not its model card."""
    total = hashlib.sha256()
    for path in sorted([*directory.rglob("*.json"), *directory.rglob("*.safetensors")]):
        total.update(str(path.relative_to(directory)).encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
