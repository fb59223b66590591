"""The networks in whose feature spaces images are compared."""

import hashlib
from abc import abstractmethod
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.parsing import read_json_object
from dmd_api.spec import Location
from dmd_trainer.data.digits import DigitsClassifier
from dmd_trainer.data.glyphs import GlyphsClassifier
from dmd_trainer.families.weights import read_weights
from dmd_trainer.runtime.fetch import ASSETS, local_path

Classifier = DigitsClassifier | GlyphsClassifier
CLASSIFIERS: dict[str, type[Classifier]] = {
    "digits-classifier": DigitsClassifier,
    "glyphs-classifier": GlyphsClassifier,
}
"""The classifiers of `builtin://`, by their names."""


class FeatureExtractor(nn.Module):
    """From images to feature vectors.

    Args:
        name: what plots and reports call the feature space.
        digest: SHA-256 of the weights, which keys what is cached.
        channels: how many channels the images must have; None for any.
    """

    def __init__(self, name: str, digest: str, channels: int | None) -> None:
        super().__init__()
        self.name, self.digest, self.channels = name, digest, channels

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D], and labels [B] where the network classifies, of images [B, C, H, W] in [-1, 1]."""


class ClassifierFeatures(FeatureExtractor):
    """The penultimate features of a classifier that ships with the trainer."""

    def __init__(self, name: str) -> None:
        weights = ASSETS / name / "model.safetensors"
        self.classifier: Classifier
        super().__init__(name, _sha256(weights), channels=CLASSIFIERS[name].channels)
        self.classifier = CLASSIFIERS[name]()
        self.classifier.load_state_dict(load_file(weights))
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(images)
        return features, self.classifier.head(features).argmax(1)


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of the InceptionV3 that FID was defined with, by torch-fidelity.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or a state dict of the same layout, also
            as safetensors.
        uri: what the manifest calls it, for messages.
        clean: whether images are brought to its 299x299 by an antialiased bicubic filter, as clean-fid does (Parmar et
            al. 2022, arXiv 2104.11222), instead of FID's original bilinear one.
    """

    SIZE = 299

    def __init__(self, weights: Path, uri: str, *, clean: bool = False) -> None:
        name = "inception-v3-clean" if clean else "inception-v3"
        super().__init__(name, _sha256(weights) + ("-clean" if clean else ""), channels=None)
        self.clean = clean
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity runs the pickle that it is given: this one was written here, of tensors alone.
        harmless = BytesIO()
        try:
            torch.save(read_weights(weights), harmless)
            harmless.seek(0)
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=harmless
            )
        except (ValueError, RuntimeError) as error:  # load_state_dict's are RuntimeErrors
            raise BadInputError(
                f"spec.evaluation.features.uri: {uri} is not torch-fidelity's InceptionV3 "
                f"({str(error).strip().splitlines()[0]}); give weights-inception-2015-12-05-6726825d.pth"
            ) from error
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        pixels = to_bytes(images)
        if not self.clean:
            (features,) = self.network(pixels)
            return features, None
        resized = F.interpolate(pixels.float(), (self.SIZE, self.SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        # The network takes bytes only, which it turns into this. What is resized stays exact by entering behind that.
        entry = (resized - 128) / 128
        handle = self.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, arguments: (entry,))
        try:
            (features,) = self.network(resized.to(torch.uint8))
        finally:
            handle.remove()
        return features, None


class ClipFeatures(FeatureExtractor):
    """CLIP's projected image embeddings [B, D], not normalised: the feature space of CLIP-FID (arXiv 2203.06026).

    Args:
        folder: a CLIPModel and its image processor, in transformers' format.
        name: what plots and reports call it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(name, clip_digest(folder), channels=None)
        self.model, self._processor = load_clip(folder, "spec.evaluation.features")

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        return clip_image_embeddings(self.model, self._processor, images), None


def to_bytes(images: Tensor) -> Tensor:
    """Images [B, 1 or 3, H, W] in [-1, 1] as files have them: uint8 [B, 3, H, W]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)


def is_clip(path: Path) -> bool:
    """Returns whether a path is a CLIP model in transformers' format."""
    config = path / "config.json"
    return path.is_dir() and config.exists() and read_json_object(config).get("model_type") == "clip"


def clip_digest(folder: Path) -> str:
    """SHA-256 of a CLIP model's weights and of what its images go through."""
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    parts = [*weights, folder / "preprocessor_config.json"]
    return hashlib.sha256("".join(_sha256(path) for path in parts if path.exists()).encode()).hexdigest()


def load_clip(folder: Path, field: str) -> tuple[Any, Any]:
    """A frozen CLIPModel, and its image processor.

    Args:
        folder: both, in transformers' format.
        field: the manifest's, for messages.

    Raises:
        BadInputError: they cannot be loaded.
    """
    from transformers import CLIPImageProcessor, CLIPModel

    try:
        model = CLIPModel.from_pretrained(folder).float().requires_grad_(False).eval()
        return model, CLIPImageProcessor.from_pretrained(folder)
    except Exception as error:  # transformers raises nearly anything at what it cannot load
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(
            f"{field}: the CLIP in {folder} cannot be loaded ({reason}); it needs config.json, weights, "
            "preprocessor_config.json and, for CLIPScore, the tokenizer"
        ) from error


def clip_image_embeddings(model: Any, processor: Any, images: Tensor) -> Tensor:
    """CLIP's projected embeddings [B, D] of images [B, C, H, W] in [-1, 1], through its own processor."""
    pixels = processor(images=list(to_bytes(images)), return_tensors="pt")["pixel_values"]
    return projected(model.get_image_features(pixel_values=pixels.to(images.device)))


def projected(output: Any) -> Tensor:
    """The embeddings in what get_image_features and get_text_features return: from transformers 5 on, an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_features(
    location: Location | None, scratch: Path, device: torch.device, *, clean: bool = False
) -> FeatureExtractor:
    """The feature network that the manifest names.

    Args:
        location: `spec.evaluation.features`.
        scratch: where it is copied to when it is remote.
        device: where it runs.
        clean: whether InceptionV3 resizes as clean-fid does: where the manifest gives a resolution.

    Raises:
        BadInputError: it names none, or what is there is not one.
    """
    if location is None:
        raise BadInputError(
            "spec.evaluation.features: missing; FID needs a feature network: give the URI of torch-fidelity's "
            "InceptionV3 weights (for the digits: builtin://digits-classifier)"
        )
    path = local_path(location.uri, scratch)
    if (name := location.uri.removeprefix("builtin://")) in CLASSIFIERS:
        return ClassifierFeatures(name).to(device)
    if is_clip(path):
        return ClipFeatures(path, f"clip ({location.uri.rstrip('/').rpartition('/')[2]})").to(device)
    if path.is_dir():
        raise BadInputError(
            f"spec.evaluation.features.uri: {location.uri} is a folder, and no CLIP model (its config.json says "
            "model_type clip); name the file of InceptionV3's weights in it"
        )
    return InceptionFeatures(path, location.uri, clean=clean).to(device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
