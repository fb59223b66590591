"""Scores how well images fit their prompts: CLIPScore (Hessel et al. 2021, arXiv 2104.08718)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.spec import Evaluation, Location
from dmd_trainer.evaluation.features import clip_digest, clip_image_embeddings, is_clip, load_clip, projected
from dmd_trainer.runtime.fetch import local_path

FIELD = "spec.evaluation.clip"
WEIGHT = 100.0
"""The paper's w is 2.5; tables of text-to-image models give the cosine itself, mostly in percent."""
PREFIX = "A photo depicts "
"""The paper's (section 3), and that of the published scores on COCO."""


class ClipScore(nn.Module):
    """w max(cos(image, text), 0), in CLIP's joint space, w = 100 (arXiv 2104.08718, section 3).

    Args:
        folder: a CLIPModel with its image processor and tokenizer, in transformers' format.
        prefix: what each prompt is prefixed with.

    Raises:
        BadInputError: it cannot be loaded.
    """

    def __init__(self, folder: Path, prefix: str = PREFIX) -> None:
        super().__init__()
        from transformers import CLIPTokenizer

        self.digest, self.prefix = f"{clip_digest(folder)}:{prefix}", prefix
        self.model, self._processor = load_clip(folder, FIELD)
        try:
            # Not AutoTokenizer, which takes the class that the folder names.
            self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers raises nearly anything at what it cannot load
            raise BadInputError(f"{FIELD}: {folder} has no tokenizer; save the CLIP with its processor") from error

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores [B], 0 to 100, float32, on the CPU.

        Args:
            images: [B, C, H, W] in [-1, 1].
            prompts: one for each image; those that are too long for the CLIP are cut.
        """
        tokens = self._tokenizer(
            [self.prefix + prompt for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(images.device)
        text = projected(
            self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )
        shown = clip_image_embeddings(self.model, self._processor, images)
        return WEIGHT * F.cosine_similarity(shown, text).clamp_min(0).float().cpu()


def wanted_clip_score(wanted: Evaluation, scratch: Path, device: torch.device) -> ClipScore | None:
    """The CLIP of a manifest's evaluation; None where CLIPScore is not measured.

    Raises:
        BadInputError: as `load_clip_score`.
    """
    return load_clip_score(wanted.clip, scratch, device) if "CLIPScore" in wanted.metrics else None


def load_clip_score(location: Location | None, scratch: Path, device: torch.device) -> ClipScore:
    """The CLIP of `spec.evaluation.clip`.

    Raises:
        BadInputError: the manifest names none, or what is there is not one.
    """
    if location is None:
        raise BadInputError(f"{FIELD}: missing; CLIPScore needs a CLIP model: give the URI of one")
    path = local_path(location.uri, scratch)
    if not is_clip(path):
        raise BadInputError(
            f"{FIELD}.uri: {location.uri} is no CLIP model: a folder in transformers' format, whose config.json says "
            "model_type clip"
        )
    # The CLIPs that ship with the trainer know bare names of things only.
    return ClipScore(path, "" if location.uri.startswith("builtin://") else PREFIX).to(device)
