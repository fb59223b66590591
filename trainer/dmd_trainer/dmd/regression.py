"""The distance between the generator's image and the teacher's for the same noise."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.spec import Regression
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.autoencoder import Pixels
from dmd_trainer.families.weights import read_weights

LPIPS_SIZE = 64
"""Images smaller than this are enlarged for LPIPS: VGG halves them four times."""


def regression_loss(
    regression: Regression | None, features: Path | None, device: torch.device, autoencoder: Pixels
) -> Callable[[Tensor, Tensor], Tensor]:
    """The manifest's regression loss, of (generated, reference) [B, C, H, W] each.

    L2 compares what the teacher denoises; LPIPS is a distance of images, so latents are decoded for it.

    Args:
        regression: the manifest's.
        features: the weights that `regression.features` names, as a file.
        device: where LPIPS's network runs.
        autoencoder: the teacher's.

    Raises:
        BadInputError: LPIPS's backbone weights are not torchvision's VGG16.
    """
    if regression is None or regression.loss == "L2":
        return l2_regression_loss
    assert regression.features is not None, "the manifest's own rules ask for it"
    assert features is not None
    distance = LPIPSLoss(features, regression.features.uri).to(device)
    return lambda generated, reference: distance(autoencoder.decode(generated), autoencoder.decode(reference))


class LPIPSLoss(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018, arXiv 1801.03924), by the `lpips` package.

    Args:
        weights: torchvision's VGG16 state dict, as safetensors or a .pth file (loaded weights only).
        uri: what the manifest calls it, for messages.
    """

    def __init__(self, weights: Path, uri: str) -> None:
        super().__init__()
        import lpips

        try:
            state = read_weights(weights)
        except ValueError as error:
            raise BadInputError(f"spec.method.regression.features.uri: {uri} cannot be loaded ({error})") from error
        # pnet_rand: the backbone is not downloaded; the linear layers come with the package.
        self.distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        slices = self.distance.net
        for name in ("slice1", "slice2", "slice3", "slice4", "slice5"):
            for index, layer in getattr(slices, name).named_children():
                if isinstance(layer, nn.Conv2d):
                    try:
                        own = {part: state[f"features.{index}.{part}"] for part in ("weight", "bias")}
                        layer.load_state_dict(own)
                    except (KeyError, RuntimeError) as error:
                        raise BadInputError(
                            f"spec.method.regression.features.uri: {uri} is not torchvision's VGG16 "
                            f"(features.{index} is missing or of another shape)"
                        ) from error
        self.requires_grad_(False).eval()

    def forward(self, generated: Tensor, reference: Tensor) -> Tensor:
        """The mean distance of a batch in [-1, 1], one or three channels: a scalar."""
        return self.distance(_enlarge(generated), _enlarge(reference)).mean()


def _enlarge(images: Tensor) -> Tensor:
    images = images.expand(-1, 3, -1, -1)
    if min(images.shape[-2:]) >= LPIPS_SIZE:
        return images
    scale = LPIPS_SIZE / min(images.shape[-2:])
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
