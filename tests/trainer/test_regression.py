"""The regression losses, and a generator that learns by regression alone."""

import json
from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Location, Regression
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.dmd.regression import regression_loss
from dmd_trainer.families.autoencoder import Pixels
from dmd_trainer.families.teacher import load_teacher
from tests.conftest import MANIFEST


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's convolutions as torchvision names them, untrained."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    weights = {f"features.{key}": value for key, value in vgg16(weights=None).features.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(weights, path)
    return path


def test_lpips_is_the_packages_own_with_the_weights_given(vgg: Path) -> None:
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=vgg.as_uri()))
    loss = regression_loss(regression, vgg, torch.device("cpu"), Pixels())
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


def test_small_and_grey_images_are_enlarged(vgg: Path) -> None:
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=vgg.as_uri()))
    loss = regression_loss(regression, vgg, torch.device("cpu"), Pixels())
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
        regression_loss(regression, path, torch.device("cpu"), Pixels())


class OnePair:
    """The same noise and image at every index."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.noise, self.image = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 1

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        count = len(indices)
        labels = {"class_labels": torch.full((count,), 3)}
        return self.noise.expand(count, -1, -1, -1), self.image.expand(count, -1, -1, -1), labels


def test_without_a_fake_score_a_step_is_adamw_on_the_regression(tiny_teacher: Path) -> None:
    content = json.loads(json.dumps(MANIFEST))
    content["spec"]["method"]["fakeScoreUpdates"] = 0
    content["spec"]["method"]["regression"]["weight"] = 2.0
    content["spec"]["training"] |= {
        "warmupSteps": 0,
        "microBatchSize": 2,
        "learningRate": 1e-3,
        "learningRateSchedule": "constant",
    }
    training = parse_manifest(content).spec.training
    teacher = load_teacher(tiny_teacher)
    pair = OnePair(teacher.sample_shape)
    data = TrainingData(teacher.conditions(10), pair)
    made = Distillation(teacher, parse_manifest(content).spec, data, l2_regression_loss)

    network = teacher.trainable_network()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=training.betas, weight_decay=training.weight_decay)
    denoiser = teacher.denoiser.with_network(network)
    highest = torch.tensor([made.generator.timesteps[0]])
    for _ in range(3):
        level = teacher.denoiser.schedule.at(highest)
        x = denoiser(pair.noise * float(level.sigma), level, {"class_labels": torch.tensor([3])})
        loss = (x - pair.image).square().mean()
        optimizer.zero_grad()
        (2 * loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), training.gradient_clip_norm or float("inf"))
        optimizer.step()
        report = made.step()
        assert report.losses.keys() == {"regression"}
        assert report.losses["regression"] == pytest.approx(loss.item(), rel=1e-4)
        assert report.gradient_norms == {"generator": pytest.approx(float(norm), rel=1e-3)}
    for one, other in zip(made.generator_network.module.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-4)
    state = made.state()
    assert state.keys() == {"generator", "ema"}
    made.load_state(state, 3)
    assert made.fake_score_weights() == {}
