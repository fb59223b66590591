"""A text-to-image teacher's text encoders, called as its own pipeline calls them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import BadInputError, naming
from dmd_trainer.families.loading import META, load_part, part_class
from dmd_trainer.families.pipelines import load_pipeline, present_parts, read_index
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

    @naming("spec.teacher.uri")
    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        index = read_index(directory)
        name = index["_class_name"]
        if name not in TEXT_PIPELINES:
            raise BadInputError(f"{directory} is a {name}; text models are {', '.join(TEXT_PIPELINES)}")
        self._family = TEXT_PIPELINES[name]
        # Only what encodes text is loaded; the networks are the teacher's.
        kept = ("tokenizer", "scheduler")
        given: dict[str, Any] = self._family.encoder_stand_ins(directory)
        for part, (library, class_name) in present_parts(index).items():
            if part.startswith("text_encoder"):
                options = {"device_map": META} if device.type == META else {}
                given[part] = load_part(directory, part, part_class(library, class_name), dtype=dtype, **options)
            elif not part.startswith(kept):
                given.setdefault(part, None)
        self._pipeline = load_pipeline(directory, **given)
        self._check_lengths(directory)
        self._device = device
        for part, module in self._pipeline.components.items():
            if part.startswith("text_encoder") and module is not None:
                module.requires_grad_(False).eval().to(device)

    def _check_lengths(self, directory: Path) -> None:
        """Refuses prompts that are padded to more than their encoder takes: of huge ones tokenizers end the process."""
        for part, encoder in self._pipeline.components.items():
            longest = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
            tokenizer = self._pipeline.components.get(part.replace("text_encoder", "tokenizer"))
            if part.startswith("text_encoder") and longest is not None and tokenizer is not None:
                padded = tokenizer.model_max_length
                if not isinstance(padded, int) or not 0 < padded <= longest:
                    raise BadInputError(
                        f"{directory}/{part.replace('text_encoder', 'tokenizer')}/tokenizer_config.json: "
                        f"model_max_length is {padded}, and {part}/config.json takes at most {longest} tokens "
                        "(max_position_embeddings); make them agree"
                    )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The condition of each prompt, [B, ...]: what the pipeline itself would give the network."""
        return self._family.encode(self._pipeline, prompts, self._device)

    @torch.no_grad()
    def negative(self) -> dict[str, Tensor]:
        """What guidance leads away from, [1, ...]."""
        return self._family.encode_negative(self._pipeline, self._device)
