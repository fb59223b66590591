"""The networks in whose feature spaces images are compared."""

import hashlib
from abc import abstractmethod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.manifest import Location
from dmd_trainer.digits import DigitsClassifier
from dmd_trainer.fetch import local_path

DIGITS = "digits-classifier"


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


class DigitsFeatures(FeatureExtractor):
    """The penultimate features of the digits classifier that ships with the trainer."""

    def __init__(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        super().__init__(DIGITS, _sha256(weights), channels=1)
        self.classifier = DigitsClassifier()
        self.classifier.load_state_dict(load_file(weights))
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(images)
        return features, self.classifier.head(features).argmax(1)


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of the InceptionV3 that FID was defined with, by torch-fidelity.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or a state dict of the same layout.
        uri: what the manifest calls it, for messages.
    """

    def __init__(self, weights: Path, uri: str) -> None:
        super().__init__("inception-v3", _sha256(weights), channels=None)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # torch-fidelity passes on whatever torch.load and load_state_dict raise
            raise BadInputError(
                f"spec.evaluation.features.uri: {uri} is not torch-fidelity's InceptionV3 "
                f"({str(error).splitlines()[0]}); give weights-inception-2015-12-05-6726825d.pth"
            ) from error
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        (features,) = self.network(pixels.expand(-1, 3, -1, -1))
        return features, None


def load_features(location: Location | None, scratch: Path, device: torch.device) -> FeatureExtractor:
    """The feature network that the manifest names.

    Raises:
        BadInputError: it names none, or what is there is not one.
    """
    if location is None:
        raise BadInputError(
            "spec.evaluation.features: missing; FID needs a feature network: give the URI of torch-fidelity's "
            "InceptionV3 weights (for the digits: builtin://digits-classifier)"
        )
    path = local_path(location.uri, scratch)
    if location.uri == f"builtin://{DIGITS}":
        return DigitsFeatures(path).to(device)
    if path.is_dir():
        raise BadInputError(f"spec.evaluation.features.uri: {location.uri} is a folder; name the weights file in it")
    return InceptionFeatures(path, location.uri).to(device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
