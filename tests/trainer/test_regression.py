"""The regression losses."""

from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file

from dmd_api.errors import BadInputError
from dmd_api.manifest import Location, Regression
from dmd_trainer.autoencoder import Pixels
from dmd_trainer.regression import regression_loss


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's convolutions as torchvision names them, untrained."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    weights = {f"features.{key}": value for key, value in vgg16(weights=None).features.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(weights, path)
    return path


def test_lpips_is_the_packages_own_with_the_weights_given(vgg: Path, tmp_path: Path) -> None:
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=vgg.as_uri()))
    loss = regression_loss(regression, tmp_path, torch.device("cpu"), Pixels())
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    from safetensors.torch import load_file

    state = load_file(vgg)
    for name in ("slice1", "slice2", "slice3", "slice4", "slice5"):
        for index, layer in getattr(reference.net, name).named_children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data.copy_(state[f"features.{index}.weight"])
                layer.bias.data.copy_(state[f"features.{index}.bias"])
    torch.testing.assert_close(loss(a, b), reference(a, b).mean())
    assert loss(a, a) == 0


def test_small_and_grey_images_are_enlarged(vgg: Path, tmp_path: Path) -> None:
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=vgg.as_uri()))
    loss = regression_loss(regression, tmp_path, torch.device("cpu"), Pixels())
    a = torch.zeros(1, 1, 8, 8, requires_grad=True)
    loss(a, torch.ones(1, 1, 8, 8)).backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_weights_that_are_none_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if content is None:
        save_file({"features.0.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=path.as_uri()))
    with pytest.raises(BadInputError, match=r"spec\.method\.regression\.features\.uri"):
        regression_loss(regression, tmp_path, torch.device("cpu"), Pixels())
