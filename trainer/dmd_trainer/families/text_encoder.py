"""A text-to-image teacher's text encoders, called as its own pipeline calls them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import BadInputError

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")


class TextEncoder:
    """From prompts to the network's condition.

    Args:
        directory: the teacher's pipeline.
        device: where the encoders run.
        dtype: what their weights are kept in.

    Raises:
        BadInputError: the pipeline is of no family known here, or its encoders cannot be loaded.
    """

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        import diffusers

        index = json.loads((directory / "model_index.json").read_text())
        self.family = str(index.get("_class_name"))
        if self.family not in PIPELINES:
            raise BadInputError(
                f"spec.teacher.uri: {directory.name} is a {self.family}; text models are {', '.join(PIPELINES)}"
            )
        # Only what encodes text is loaded; the networks are the teacher's.
        kept = ("tokenizer", "text_encoder", "scheduler")
        absent: dict[str, Any] = {
            name: None
            for name, value in index.items()
            if isinstance(value, list) and (value[0] is None or not name.startswith(kept))
        }
        if self.family == "StableDiffusion3Pipeline":
            # Without T5, its embeddings are zeros of a width that only the transformer's configuration knows.
            config = json.loads((directory / "transformer" / "config.json").read_text())
            with torch.device("meta"):
                absent["transformer"] = diffusers.SD3Transformer2DModel.from_config(config)
        try:
            self._pipeline = getattr(diffusers, self.family).from_pretrained(
                directory, torch_dtype=dtype, use_safetensors=True, **absent
            )
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"spec.teacher.uri: the text encoders in {directory} cannot be loaded ({reason}); the pipeline needs "
                "its tokenizer and text encoder folders"
            ) from error
        self._device = device
        for name, module in self._pipeline.components.items():
            if name.startswith("text_encoder") and module is not None:
                module.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The condition of each prompt, [B, ...]: what the pipeline itself would give the network."""
        if self.family == "StableDiffusionPipeline":
            hidden, _ = self._pipeline.encode_prompt(prompts, self._device, 1, False)
            return {"encoder_hidden_states": hidden}
        hidden, _, pooled, _ = self._encode_two(prompts)
        return {"encoder_hidden_states": hidden, self._pooled_name: pooled}

    @torch.no_grad()
    def negative(self) -> dict[str, Tensor]:
        """What guidance leads away from, [1, ...]: the empty prompt, or zeros where the pipeline says so (SDXL)."""
        empty = self.encode([""])
        if self.family == "StableDiffusionXLPipeline" and self._pipeline.config.force_zeros_for_empty_prompt:
            return {key: torch.zeros_like(value) for key, value in empty.items()}
        return empty

    @property
    def _pooled_name(self) -> str:
        return "text_embeds" if self.family == "StableDiffusionXLPipeline" else "pooled_projections"

    def _encode_two(self, prompts: list[str]) -> tuple[Tensor, ...]:
        further = {} if self.family == "StableDiffusionXLPipeline" else {"prompt_3": None}
        return tuple(
            self._pipeline.encode_prompt(
                prompt=prompts, prompt_2=None, device=self._device, do_classifier_free_guidance=False, **further
            )
        )
