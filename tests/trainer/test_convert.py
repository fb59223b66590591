"""EDM's checkpoints become teachers that compute the same, and a pickle is never run."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from dmd_api.errors import BadInputError
from dmd_trainer.conditions.labels import Unconditional
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import schedule_from_scheduler
from dmd_trainer.families.convert import edm
from dmd_trainer.families.convert.edm import convert_edm
from dmd_trainer.families.convert.pickles import read_pickle
from dmd_trainer.families.networks.song_unet import SongUNet
from tests.trainer import edm_networks as published

NETWORKS = {
    "adm": lambda: published.DhariwalUNet(),
    "adm-unconditional": lambda: published.DhariwalUNet(classes=0, mults=(1, 1, 2), attends=(8, 4)),
    "ddpmpp": lambda: published.SongUNet(),
    "ddpmpp-unconditional": lambda: published.SongUNet(classes=0, mults=(2, 2, 2)),
    "ncsnpp": lambda: published.SongUNet(ncsn=True, mults=(1, 2, 2)),
}
SIGMAS = torch.tensor([0.002, 0.05, 0.6, 5.0, 80.0])


def made(name: str) -> published.EDMPrecond:
    torch.manual_seed(1)
    network = published.EDMPrecond(NETWORKS[name]())
    return network.eval().requires_grad_(False)


def denoiser(folder: Path) -> Denoiser:
    """The converted teacher as the trainer calls it."""
    from diffusers import UNet2DModel

    kind = json.loads((folder / "unet" / "config.json").read_text())["_class_name"]
    network_class: Any = {"UNet2DModel": UNet2DModel, "SongUNet": SongUNet}[kind]
    schedule = schedule_from_scheduler(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
    return Denoiser(network_class.from_pretrained(folder, subfolder="unet").eval(), schedule, Prediction.EDM)


@torch.no_grad()
def assert_same(folder: Path, original: published.EDMPrecond) -> None:
    """Both denoise alike at every noise level, each sample of another class."""
    converted = denoiser(folder)
    classes = converted.network.config.num_class_embeds
    labels = torch.arange(len(SIGMAS)) % (classes or 1)
    x = torch.randn(len(SIGMAS), 3, 16, 16) * SIGMAS[:, None, None, None]
    hot = nn.functional.one_hot(labels, classes).float() if classes else None
    wanted = original(x, SIGMAS, hot)
    level = converted.schedule.at_sigma(SIGMAS)
    got = converted(x, level, {"class_labels": labels} if classes else {})
    # Of the network's own share: at low noise the input itself is nearly all of x0.
    skip = (0.25 / (SIGMAS**2 + 0.25))[:, None, None, None] * x
    error = (got - wanted).flatten(1).norm(dim=1) / (wanted - skip).flatten(1).norm(dim=1)
    assert error.max() < 1e-4, error
    if classes:
        other = converted(x, level, {"class_labels": (labels + 1) % classes})
        assert ((other - wanted).flatten(1).norm(dim=1) / (wanted - skip).flatten(1).norm(dim=1)).min() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_pickle_computes_the_same(name: str, tmp_path: Path) -> None:
    original = made(name)
    published.save_published(published.checkpoint(original), tmp_path / "edm.pkl")
    report = convert_edm(tmp_path / "edm.pkl", tmp_path / "teacher")
    assert report.network == ("UNet2DModel" if name.startswith("adm") else "SongUNet")
    assert report.sample_shape == (3, 16, 16)
    assert report.classes == (None if "unconditional" in name else 5)
    assert_same(tmp_path / "teacher", original)


@pytest.mark.parametrize("name", ["adm", "ncsnpp"])
def test_a_state_dict_in_safetensors_is_taken_too(name: str, tmp_path: Path) -> None:
    original = made(name)
    save_file({key: value.contiguous() for key, value in original.state_dict().items()}, tmp_path / "edm.safetensors")
    convert_edm(tmp_path / "edm.safetensors", tmp_path / "teacher")
    assert_same(tmp_path / "teacher", original)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_the_published_sizes_fit() -> None:
    """ImageNet-64 has 296 million parameters, CIFAR-10 56 million as counted in the published code."""
    with torch.device("meta"):
        adm = published.DhariwalUNet(64, 1000, 192, (1, 2, 3, 4), 3, (32, 16, 8))
        network = edm._adm(edm._layout(adm.state_dict()), adm.state_dict())
    assert network.config.down_block_types == ("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3
    assert network.config.block_out_channels == (192, 384, 576, 768)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 296
    song = published.SongUNet(32, 10, 128, (2, 2, 2), 4, (16,))
    ours = edm._song(edm._layout(song.state_dict()), song.state_dict())
    assert (ours.config.model_channels, ours.config.block_out_channels) == (128, (256, 256, 256))
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6) == 56


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    published.save_published(published.checkpoint(made("ddpmpp")), tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
    convert_edm(tmp_path / "edm-cifar10-32x32-cond-vp.pkl", tmp_path / "teacher")
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card
    assert "edm-cifar10-32x32-cond-vp.pkl" in card
    assert json.loads((tmp_path / "teacher" / "model_index.json").read_text())["unet"][1] == "SongUNet"
    scheduler = json.loads((tmp_path / "teacher" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["sigma_min"], scheduler["sigma_max"], scheduler["sigma_data"]) == (0.002, 80.0, 0.5)


def test_adm_teachers_load(tmp_path: Path) -> None:
    from dmd_trainer.families.teacher import load_teacher

    published.save_published(published.checkpoint(made("adm")), tmp_path / "edm.pkl")
    convert_edm(tmp_path / "edm.pkl", tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    assert teacher.sample_shape == (3, 16, 16)
    assert teacher.conditions(5).count == 5
    assert teacher.denoiser.prediction == Prediction.EDM


def test_ddpms_cifar10_network_loads(tmp_path: Path) -> None:
    """The layout of google/ddpm-cifar10-32, narrower: unconditional, one level with attention."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from dmd_trainer.families.teacher import load_teacher

    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=4,
    )
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, variance_type="fixed_large")
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "ddpm")
    teacher = load_teacher(tmp_path / "ddpm")
    assert teacher.sample_shape == (3, 32, 32)
    assert isinstance(teacher.conditions(None), Unconditional)
    assert teacher.denoiser.prediction == Prediction.EPSILON
    level = teacher.denoiser.schedule.at(torch.tensor([500]))
    assert teacher.denoiser(torch.randn(1, 3, 32, 32), level, {}).isfinite().all()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps({"ema": Evil(marker)}))
    with pytest.raises(BadInputError, match=r"(posix|nt)\.system.*not run"):
        convert_edm(file, tmp_path / "teacher")
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists(), "the pickle would have run"


def test_a_pickle_within_a_tensor_is_not_run(tmp_path: Path) -> None:
    """A storage's bytes are a pickle of their own."""
    marker, network = tmp_path / "ran", made("ddpmpp")
    inner = pickle.dumps(Evil(marker), protocol=2)

    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (inner,)

    class Weight:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (1,), (1,), False, {})

    network.model.map_layer0.__dict__["_parameters"]["weight"] = Weight()
    published.save_published({"ema": network}, tmp_path / "evil.pkl")
    with pytest.raises(BadInputError, match="damaged"):
        convert_edm(tmp_path / "evil.pkl", tmp_path / "teacher")
    assert not marker.exists()


def test_modules_that_contain_each_other_are_refused(tmp_path: Path) -> None:
    network, circle = made("ddpmpp"), torch.nn.Sequential()
    circle._modules["itself"] = circle
    network.model.circle = circle
    published.save_published({"ema": network}, tmp_path / "circle.pkl")
    with pytest.raises(BadInputError, match="contain each other"):
        convert_edm(tmp_path / "circle.pkl", tmp_path / "teacher")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle at all", "not a pickle"),
        (b"", "not a pickle"),
        (pickle.dumps([1, 2]), "no 'ema' network"),
        (pickle.dumps({"ema": 3}), "holds int where a network"),
        (pickle.dumps({"ema": eval}), r"builtins\.eval"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "edm.pkl").write_bytes(content)
    with pytest.raises(BadInputError, match=message) as error:
        convert_edm(tmp_path / "edm.pkl", tmp_path / "teacher")
    assert error.value.message.startswith(str(tmp_path / "edm.pkl"))
    assert not (tmp_path / "teacher").exists()


class VPPrecond(published.EDMPrecond):
    """EDM's baselines are preconditioned otherwise."""


class OtherUNet(published.SongUNet):
    """A network that no checkpoint has."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: VPPrecond(published.SongUNet()), "preconditioned by VPPrecond"),
        (lambda: published.EDMPrecond(OtherUNet()), "is a OtherUNet"),
        (lambda: published.EDMPrecond(published.DhariwalUNet(width=64)), "multiple of 32, from 128"),
        (lambda: damaged("dec.8x8_block0.conv1", "weight", None), r"dec\.8x8_block0\.conv1\.weight is missing"),
        (
            lambda: damaged("enc.8x8_block0.norm1", "bias", torch.zeros(7)),
            r"enc\.8x8_block0\.norm1\.bias makes .*\(7,\)",
        ),
        (lambda: damaged("map_layer1", "extra", torch.zeros(7)), r"1 tensors have no place.*map_layer1\.extra"),
    ],
)
def test_what_cannot_be_converted_is_named(network: Any, message: str, tmp_path: Path) -> None:
    published.save_published(published.checkpoint(network()), tmp_path / "edm.pkl")
    with pytest.raises(BadInputError, match=message):
        convert_edm(tmp_path / "edm.pkl", tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def damaged(module: str, parameter: str, value: torch.Tensor | None) -> published.EDMPrecond:
    network = published.EDMPrecond(published.SongUNet())
    network.model.get_submodule(module).register_parameter(parameter, None if value is None else nn.Parameter(value))
    return network


def test_files_of_torch_save_are_told_what_to_do(tmp_path: Path) -> None:
    torch.save({"ema": torch.zeros(1)}, tmp_path / "new.pkl")
    torch.save({"ema": torch.zeros(1)}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("new.pkl", "old.pkl"):
        with pytest.raises(BadInputError):
            convert_edm(tmp_path / name, tmp_path / "teacher")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BadInputError, match="there already"):
        convert_edm(tmp_path / "edm.pkl", tmp_path)


def test_records_keep_what_the_pickle_says(tmp_path: Path) -> None:
    published.save_published(published.checkpoint(made("ddpmpp")), tmp_path / "edm.pkl")
    content = read_pickle(tmp_path / "edm.pkl")
    assert content["dataset_kwargs"].name == "dnnlib.util.EasyDict"
    assert content["dataset_kwargs"].items == {"path": "images.zip", "resolution": 16}
    assert list(content["extra"].items) == ["std"]


def test_the_consistency_models_time_is_a_setting_of_our_network() -> None:
    torch.manual_seed(0)
    network = SongUNet(
        8,
        model_channels=16,
        block_out_channels=(16, 16),
        layers_per_block=1,
        time_embedding_channels=16,
        embedding_channels=32,
    ).eval()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 4.0])
    plain = network(x, sigma.log() / 4, return_dict=False)[0]
    network.register_to_config(time_scale=0.001)
    assert torch.allclose(network(x, 250 * sigma.log(), return_dict=False)[0], plain, atol=1e-5)
    with pytest.raises(ValueError, match="class_labels"):
        network(x, sigma, torch.tensor([0, 1]))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    network = SongUNet(
        8,
        model_channels=16,
        block_out_channels=(16, 16),
        layers_per_block=1,
        time_embedding_channels=16,
        embedding_channels=32,
    )
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.4])
    grads = []
    for checkpointing in (False, True):
        network.zero_grad()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(x, time, return_dict=False)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_the_command(tmp_path: Path) -> None:
    from dmdctl.main import app

    published.save_published(published.checkpoint(made("ddpmpp")), tmp_path / "edm.pkl")
    result = CliRunner().invoke(app, ["convert", "edm", str(tmp_path / "edm.pkl"), str(tmp_path / "teacher")])
    assert result.exit_code == 0, result.output
    assert "SongUNet" in result.output
    assert "cc-by-nc-sa-4.0" in result.output
