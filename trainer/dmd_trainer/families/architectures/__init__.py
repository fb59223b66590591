"""What teachers are built like, without their weights: published ones by name, others from their folder.

The published configurations are the JSON files beside this one; their source is in each.
"""

import copy
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmd_api.errors import BadInputError

if TYPE_CHECKING:  # configurations are read without torch, networks are built with it
    from torch import Tensor, nn

KNOWN = ("sd15", "sdxl", "sd3", "adm-imagenet64", "edm-cifar10", "ddpm-cifar10")
"""The names that the annotation `dmd-operator.io/architecture` may have."""

NAMES = {
    "stable-diffusion-xl-base": "sdxl",
    "stable-diffusion-3-medium": "sd3",
    "stable-diffusion-v1-": "sd15",
    "edm-imagenet-64x64": "adm-imagenet64",
    "edm-cifar10-32x32": "edm-cifar10",
    "ddpm-cifar10-32": "ddpm-cifar10",
}
"""Parts of the names that published checkpoints go by."""

NETWORKS = ("SongUNet", "UNet2DModel", "UNet2DConditionModel", "SD3Transformer2DModel")
"""The classes of networks that are known here."""

PROMPT_TOKENS = 77
"""What CLIP's text encoders read of a prompt (arXiv 2103.00020, section 2.4)."""
T5_TOKENS = 256
"""What SD3's pipeline lets T5 read of it, beside CLIP's tokens."""
SIZE_CONDITIONS = 6
"""Numbers that SDXL is told of a picture's size and crop (arXiv 2307.01952, section 2.2)."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A teacher's networks, as diffusers configures them.

    Attributes:
        name: for people.
        network: the denoising network's configuration.
        scheduler: the noise schedule's.
        decoder: the VAE's; None for a teacher of pixels.
        encoder_parameters: weights of the text encoders.
    """

    name: str
    network: dict[str, Any]
    scheduler: dict[str, Any]
    decoder: dict[str, Any] | None
    encoder_parameters: int

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised."""
        size = self.network["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.network.get("in_channels", 3)), int(height), int(width)

    def build_network(self) -> "nn.Module":
        """The denoising network on the meta device, where weights have shapes only."""
        import torch

        with torch.device("meta"):
            return network_class(self.network).from_config(copy.deepcopy(self.network)).eval()

    def build_decoder(self) -> "nn.Module":
        """The VAE on the meta device."""
        import torch
        from diffusers import AutoencoderKL

        assert self.decoder is not None, "teachers of pixels have none"
        with torch.device("meta"):
            return AutoencoderKL.from_config(copy.deepcopy(self.decoder)).eval()

    def conditions(self, batch: int) -> "dict[str, Tensor]":
        """The network's condition for `batch` samples, as `Denoiser` takes it: zeros."""
        import torch

        config = self.network
        if config["_class_name"] == "SD3Transformer2DModel":
            return {
                "encoder_hidden_states": torch.zeros(
                    batch, PROMPT_TOKENS + T5_TOKENS, int(config["joint_attention_dim"])
                ),
                "pooled_projections": torch.zeros(batch, int(config["pooled_projection_dim"])),
            }
        if config["_class_name"] != "UNet2DConditionModel":
            labelled = config.get("num_class_embeds") is not None
            return {"class_labels": torch.zeros(batch, dtype=torch.int64)} if labelled else {}
        arguments = {"encoder_hidden_states": torch.zeros(batch, PROMPT_TOKENS, int(config["cross_attention_dim"]))}
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"]
            pooled -= SIZE_CONDITIONS * config["addition_time_embed_dim"]
            arguments["text_embeds"] = torch.zeros(batch, pooled)
            arguments["time_ids"] = torch.zeros(batch, SIZE_CONDITIONS)
        return arguments


def known_architecture(name: str) -> Architecture:
    """A published teacher's.

    Raises:
        BadInputError: the name is not one of `KNOWN`.
    """
    if name not in KNOWN:
        raise BadInputError(
            f"metadata.annotations: dmd-operator.io/architecture is {name!r}; must be one of {', '.join(KNOWN)}"
        )
    content = json.loads((files(__name__) / f"{name}.json").read_text())
    return Architecture(
        name, content["network"], content["scheduler"], content["decoder"], content["encoder_parameters"]
    )


def guess_architecture(uri: str) -> Architecture | None:
    """That of the published checkpoint that a teacher's URI names, if it names one."""
    return next((known_architecture(name) for part, name in NAMES.items() if part in uri.lower()), None)


def read_architecture(directory: Path) -> Architecture:
    """That of a teacher's folder in diffusers format.

    Raises:
        BadInputError: it has no `unet/` or `transformer/`, or its network is of a class not known here.
    """
    part = "transformer" if (directory / "transformer").is_dir() else "unet"
    network = _read(directory / part / "config.json")
    _known_class(network)
    decoder = directory / "vae" / "config.json"
    encoders = sum(
        _count_parameters(path)
        for part in ("text_encoder", "text_encoder_2", "text_encoder_3")
        for path in _weights(directory / part)
    )
    scheduler = _read(directory / "scheduler" / "scheduler_config.json")
    return Architecture(directory.name, network, scheduler, _read(decoder) if decoder.exists() else None, encoders)


def network_class(config: dict[str, Any]) -> Any:
    """The class of a network's configuration.

    Raises:
        BadInputError: it is not one of those known here.
    """
    name = _known_class(config)
    if name == "SongUNet":
        from dmd_trainer.families.networks.song_unet import SongUNet

        return SongUNet
    import diffusers

    return getattr(diffusers, name)


def _known_class(config: dict[str, Any]) -> str:
    name = config.get("_class_name")
    if name not in NETWORKS:
        raise BadInputError(f"the teacher's network is a {name}; memory and time can be estimated for U-Nets and SD3")
    return str(name)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); is the teacher in diffusers format?") from error
    return content


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _count_parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
