"""A text-to-image teacher's text encoders, called as its own pipeline calls them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import BadInputError, reading
from dmd_trainer.families.parts import (
    FIELD,
    META,
    SAVE_AGAIN,
    absent_parts,
    load_part,
    part_class,
    parts_of,
    read_index,
)
from dmd_trainer.families.table import TEXT_PIPELINES


class TextEncoder:
    """From prompts to the network's condition.

    Args:
        directory: the teacher's pipeline.
        device: where the encoders run; on the meta device they have no weights, and make conditions without content.
        dtype: what their weights are kept in.

    Raises:
        BadInputError: the pipeline is of no family known here, or its encoders cannot be loaded.
    """

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        import diffusers

        index = read_index(directory)
        name = str(index.get("_class_name"))
        if name not in TEXT_PIPELINES:
            raise BadInputError(f"{FIELD}: {directory.name} is a {name}; text models are {', '.join(TEXT_PIPELINES)}")
        self._family = TEXT_PIPELINES[name]
        # Only what encodes text is loaded; the networks are the teacher's.
        kept = ("tokenizer", "text_encoder", "scheduler")
        parts: dict[str, Any] = dict(absent_parts(index))
        for part, (library, class_name) in parts_of(index).items():
            if part.startswith("text_encoder"):
                options = {"device_map": META} if device.type == META else {}
                kind = part_class(directory, part, library, class_name)
                parts[part] = load_part(directory, part, kind, dtype=dtype, **options)
            elif not part.startswith(kept):
                parts[part] = None
        with reading(f"{FIELD}: {directory}: its tokenizers and text encoders cannot be loaded", SAVE_AGAIN):
            parts |= self._family.encoder_stand_ins(directory)
            self._pipeline = getattr(diffusers, name).from_pretrained(directory, **parts)
        self._device = device
        for part, module in self._pipeline.components.items():
            if part.startswith("text_encoder") and module is not None:
                module.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The condition of each prompt, [B, ...]: what the pipeline itself would give the network."""
        return self._family.encode(self._pipeline, prompts, self._device)

    @torch.no_grad()
    def negative(self) -> dict[str, Tensor]:
        """What guidance leads away from, [1, ...]."""
        return self._family.encode_negative(self._pipeline, self._device)
