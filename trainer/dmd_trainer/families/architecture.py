"""What teachers are built like, without their weights: published ones by name, others from their folder.

The published configurations are the JSON files below `published/`; their source is in each.
"""

import copy
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmd_api.errors import BadInputError
from dmd_api.parsing import LARGEST_JSON, parse_json, read_json_object
from dmd_trainer.families.family import Family
from dmd_trainer.families.table import NETWORKS, PUBLISHED, find_family

if TYPE_CHECKING:  # configurations are read without torch, networks are built with it
    from torch import Tensor, nn

KNOWN = tuple(PUBLISHED)
"""The names that the annotation `dmd-operator.io/architecture` may have."""
LONGEST_HEADER = 100_000_000
"""The safetensors library's own bound, in bytes."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A teacher's networks, as diffusers configures them.

    Attributes:
        name: for people.
        network: the denoising network's configuration.
        scheduler: the noise schedule's.
        decoder: the VAE's; None for a teacher of pixels.
        encoder_parameters: weights of the text encoders.

    Raises:
        BadInputError: no family knows its network.
    """

    name: str
    network: dict[str, Any]
    scheduler: dict[str, Any]
    decoder: dict[str, Any] | None
    encoder_parameters: int

    def __post_init__(self) -> None:
        if find_family(self.network, self.scheduler) is None:
            name = self.network.get("_class_name")
            raise BadInputError(f"the teacher's network is a {name}; use a {' or '.join(NETWORKS)}")

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides its networks, as JSON has it; its name does not."""
        return {key: value for key, value in vars(self).items() if key != "name"}

    @property
    def family(self) -> Family:
        """Its family."""
        found = find_family(self.network, self.scheduler)
        assert found is not None, "it was looked up before"
        return found

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
            return self.family.network_class(self.network).from_config(copy.deepcopy(self.network)).eval()

    def build_decoder(self) -> "nn.Module":
        """The VAE on the meta device."""
        import torch
        from diffusers import AutoencoderKL

        assert self.decoder is not None, "teachers of pixels have none"
        with torch.device("meta"):
            return AutoencoderKL.from_config(copy.deepcopy(self.decoder)).eval()

    def conditions(self, batch: int) -> "dict[str, Tensor]":
        """The network's condition for `batch` samples, as `Denoiser` takes it: zeros."""
        return self.family.empty_conditions(self.network, batch)


def known_architecture(name: str) -> Architecture:
    """A published teacher's.

    Raises:
        BadInputError: the name is not one of `KNOWN`.
    """
    if name not in KNOWN:
        raise BadInputError(
            f"metadata.annotations: dmd-operator.io/architecture is {name!r}; must be one of {', '.join(KNOWN)}"
        )
    content = json.loads((files("dmd_trainer.families") / "published" / f"{name}.json").read_text())
    return Architecture(
        name, content["network"], content["scheduler"], content["decoder"], content["encoder_parameters"]
    )


def guess_architecture(uri: str) -> Architecture | None:
    """That of the published checkpoint that a teacher's URI names, if it names one."""
    names = (name for name, family in PUBLISHED.items() if family.published[name] in uri.lower())
    return next((known_architecture(name) for name in names), None)


def read_architecture(directory: Path) -> Architecture:
    """That of a teacher's folder in diffusers format.

    Raises:
        BadInputError: it has no `unet/` or `transformer/`, or its network is of a class not known here.
    """
    part = "transformer" if (directory / "transformer").is_dir() else "unet"
    network = _read(directory / part / "config.json")
    decoder = directory / "vae" / "config.json"
    encoders = sum(
        _count_parameters(path)
        for part in ("text_encoder", "text_encoder_2", "text_encoder_3")
        for path in _weights(directory / part)
    )
    scheduler = _read(directory / "scheduler" / "scheduler_config.json")
    return Architecture(directory.name, network, scheduler, _read(decoder) if decoder.exists() else None, encoders)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: missing; is the teacher in diffusers format?") from error


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _count_parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, from its header alone."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(size, LARGEST_JSON + 1)), f"{path}: header")
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{path}: is no safetensors file ({type(error).__name__}); save the teacher again"
        ) from error
