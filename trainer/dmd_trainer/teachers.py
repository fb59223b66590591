"""Teachers, loaded from diffusers' format."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError

from dmd_api.errors import BadInputError
from dmd_trainer.conditions import Conditions
from dmd_trainer.denoiser import Denoiser, Prediction
from dmd_trainer.schedules import schedule_from_scheduler


@dataclass(frozen=True)
class Teacher:
    """A frozen diffusion model and what there is to know about it.

    Attributes:
        denoiser: the network behind its preconditioning; its parameters require no gradient.
        directory: the diffusers pipeline it came from.
        sample_shape: (C, H, W) of what it denoises.
        num_class_embeds: how many labels its network embeds; None for an unconditional one.
        digest: SHA-256 of its weights and configurations, which keys what is cached about it.
    """

    denoiser: Denoiser
    directory: Path
    sample_shape: tuple[int, int, int]
    num_class_embeds: int | None
    digest: str

    def conditions(self, class_count: int | None) -> Conditions:
        """The conditions this teacher can be given with `class_count` classes (None: unconditional).

        Raises:
            BadInputError: the teacher embeds another number of classes.
        """
        embedded = self.num_class_embeds
        if (class_count is None) != (embedded is None):
            wants = "no class labels" if embedded is None else f"class labels (it embeds {embedded})"
            raise BadInputError(f"spec.data.classLabels: the teacher takes {wants}; make the manifest agree with it")
        if class_count is None or embedded is None:
            return Conditions()
        if class_count not in (embedded, embedded - 1):
            raise BadInputError(
                f"spec.data.classLabels.count: {class_count}, but the teacher embeds {embedded} labels; "
                f"use {embedded}, or {embedded - 1} where the last one stands for no class"
            )
        return Conditions(class_count, class_count if class_count == embedded - 1 else None)


def load_teacher(
    directory: Path, *, device: torch.device | str = "cpu", autocast: torch.dtype | None = None
) -> Teacher:
    """Loads a teacher from a folder in diffusers format.

    Args:
        directory: holds `model_index.json`, `unet/` and `scheduler/`.
        device: where the network goes.
        autocast: the dtype that the network runs in, see `Denoiser`.

    Raises:
        BadInputError: it is no diffusers pipeline, or one of its parts is missing or of a kind not known here.
    """
    _read_json(directory / "model_index.json", "the teacher is not a diffusers pipeline")
    unet = _read_json(directory / "unet" / "config.json", "the teacher has no unet/")
    scheduler = _read_json(directory / "scheduler" / "scheduler_config.json", "the teacher has no scheduler/")
    if unet.get("_class_name") != "UNet2DModel":
        raise BadInputError(f"{directory}/unet: {unet.get('_class_name')} is not supported; use a UNet2DModel")
    schedule = schedule_from_scheduler(scheduler)
    try:
        network = UNet2DModel.from_pretrained(directory, subfolder="unet", use_safetensors=True)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise BadInputError(
            f"{directory}/unet: the weights cannot be loaded ({_first_line(error)}); "
            "save the pipeline again with save_pretrained(..., safe_serialization=True)"
        ) from error
    network.requires_grad_(False).eval().to(device)
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if not height or network.config.in_channels != network.config.out_channels:
        raise BadInputError(
            f"{directory}/unet/config.json: needs a sample_size and as many out_channels as in_channels"
        )
    return Teacher(
        denoiser=Denoiser(network, schedule.to(device), _prediction(scheduler), autocast),
        directory=directory,
        sample_shape=(int(network.config.in_channels), int(height), int(width)),
        num_class_embeds=network.config.num_class_embeds if network.class_embedding is not None else None,
        digest=_digest(directory),
    )


def _prediction(scheduler: dict[str, Any]) -> Prediction:
    name = str(scheduler["_class_name"])
    if name.startswith("FlowMatch"):
        return Prediction.FLOW
    kind = str(scheduler.get("prediction_type", "epsilon"))
    if name.startswith(("EDM", "CMStochastic")):
        if kind != "epsilon":
            raise BadInputError(f"scheduler_config.json: prediction_type {kind} of an EDM teacher is not supported")
        return Prediction.EDM
    if kind not in {"epsilon", "v_prediction", "sample"}:
        raise BadInputError(f"scheduler_config.json: prediction_type {kind} is not known to diffusers")
    return Prediction(kind)


def _digest(directory: Path) -> str:
    """Of what decides the teacher's output: the configurations and weights, not its model card."""
    total = hashlib.sha256()
    for path in sorted([*directory.rglob("*.json"), *directory.rglob("*.safetensors")]):
        total.update(str(path.relative_to(directory)).encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: missing: {otherwise}; save one with DiffusionPipeline.save_pretrained") from error
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: is not a JSON object")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
