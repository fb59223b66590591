"""Memory from configurations: published sizes, and peaks of real steps on small networks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.architecture import KNOWN, guess_architecture, known_architecture, read_architecture
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.planning.fake_decoder import decode_ends
from dmd_trainer.planning.live_tensors import LiveTensors
from dmd_trainer.planning.measured import count_flops
from dmd_trainer.planning.memory import count_sizes, estimate_memory
from tests.conftest import MANIFEST

REGRESSION = {"name": "DMD", "regression": {"pairs": 4}}
ALONE = {**REGRESSION, "fakeScoreUpdates": 0}
GAN = {"name": "DMD2", "gan": {}, "fakeScoreUpdates": 2}
PUBLISHED = {
    "sd15": 859.52,
    "sdxl": 2567.46,
    "sd3": 2028.33,
    "adm-imagenet64": 295.90,
    "ddpm-cifar10": 35.75,
    "edm-cifar10": 55.74,
}
"""Millions of weights, as the published checkpoints have them."""


def manifest_of(method: dict[str, Any], workers: int = 1, **training: Any) -> DMDDistillation:
    content = copy.deepcopy(MANIFEST)
    spec = content["spec"]
    spec["teacher"] = {"uri": "hf://teachers/any", **training.pop("teacher", {})}
    spec["data"] |= {"images": {"uri": "s3://images"}}
    spec["method"] = method
    spec["workers"] = {"processesPerNode": workers}
    spec["training"] |= training
    return parse_manifest(content)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EDM teacher of a million weights, with attention."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=10,
    )
    folder = tmp_path_factory.mktemp("teacher")
    ConsistencyModelPipeline(network, CMStochasticIterativeScheduler(num_train_timesteps=18)).save_pretrained(folder)
    return folder


class Rows:
    """Pairs and real images as the step reads them."""

    def __len__(self) -> int:
        return 4

    def at(self, indices: Tensor) -> Any:
        shape = (len(indices), 3, 16, 16)
        labels = {"class_labels": torch.zeros(len(indices), dtype=torch.int64)}
        return torch.zeros(shape), torch.zeros(shape), labels


class RealImages(Rows):
    def at(self, indices: Tensor) -> Any:
        images, _, labels = super().at(indices)
        return images, labels

    def prefetch(self, indices: Tensor) -> None:
        """Everything is in memory."""


@pytest.mark.parametrize(
    ("method", "precision", "checkpointing", "micro_batch"),
    [
        (REGRESSION, "fp32", False, 2),
        (REGRESSION, "bf16", True, 8),
        (ALONE, "fp32", False, 8),
        (GAN, "fp32", True, 8),
        (GAN, "bf16", False, 8),
        (GAN, "bf16", False, 2),
    ],
)
def test_the_estimate_is_the_peak_of_a_real_step_within_a_tenth(
    teacher_folder: Path, method: dict[str, Any], precision: str, checkpointing: bool, micro_batch: int
) -> None:
    manifest = manifest_of(
        method, batchSize=8, microBatchSize=micro_batch, precision=precision, activationCheckpointing=checkpointing
    )
    teacher = load_teacher(teacher_folder, autocast=torch.bfloat16 if precision == "bf16" else None)
    with LiveTensors() as live:
        distillation = Distillation(
            teacher,
            manifest.spec,
            TrainingData(teacher.conditions(10), Rows() if "regression" in method else None, RealImages()),
            l2_regression_loss,
        )
        for _ in range(2):  # Adam's moments come with the first
            distillation.step()
    frozen = sum(p.numel() * p.element_size() for p in teacher.denoiser.network.parameters())
    estimate = estimate_memory(manifest, read_architecture(teacher_folder), gpu=False)
    assert estimate.total == pytest.approx(frozen + live.peak, rel=0.1)
    # What is measured, and not only counted, is a good part of it.
    assert estimate.activations > 0.15 * estimate.total


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("before", [0, 10**6], ids=["peak anywhere", "peak forwards"])
def test_decoding_the_ends_of_a_batch_holds_as_much_as_decoding_all(batch: int, before: int) -> None:
    def peak(decode_all: Any) -> int:
        with FakeTensorMode():
            latents = torch.empty(batch, 4, 8, 8, requires_grad=True)
            vae = AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
            ).requires_grad_(False)
            with LiveTensors() as live:
                held = torch.empty(before)
                images = decode_all(lambda part: vae.decode(part / 1.0, return_dict=False)[0], latents * 2)
                loss = (images.sin() - torch.empty_like(images)).square().mean()
                del held, images
                torch.autograd.backward([loss])
            return live.peak

    def one_by_one(decode: Any, latents: Tensor) -> Tensor:
        return torch.cat([checkpoint(decode, part, use_reentrant=False) for part in latents.split(1)])

    assert peak(decode_ends) == peak(one_by_one)


@pytest.mark.parametrize("name", KNOWN)
def test_architectures_have_their_published_sizes(name: str) -> None:
    sizes = count_sizes(manifest_of(REGRESSION), known_architecture(name))
    assert sizes.network / 1e6 == pytest.approx(PUBLISHED[name], abs=0.01)


def test_operations_are_those_of_the_layers() -> None:
    """SD 1.5's 401 and its decoder's 1,240 billion multiply-adds at 512x512, as others count them."""
    flops = count_flops(known_architecture("sd15"))
    assert flops.network == pytest.approx(2 * 401e9, rel=0.02)
    assert flops.decoder == pytest.approx(2 * 1240e9, rel=0.03)


def test_weights_and_states_follow_the_manifest() -> None:
    architecture = known_architecture("ddpm-cifar10")
    plain = estimate_memory(manifest_of(REGRESSION, 8), architecture)
    parameters = count_sizes(manifest_of(REGRESSION), architecture).network
    assert plain.trained == plain.gradients == 2 * 4 * parameters
    assert plain.optimizer == 2 * 2 * 4 * parameters
    assert plain.ema == plain.frozen == 4 * parameters
    assert plain.gathered == 0

    sharded = estimate_memory(manifest_of(REGRESSION, 8, sharding="FSDP"), architecture)
    for part in ("trained", "gradients", "optimizer", "ema", "frozen"):
        assert getattr(sharded, part) == pytest.approx(getattr(plain, part) / 8, rel=1e-6)
    assert sharded.gathered > 0

    eight_bits = estimate_memory(manifest_of(REGRESSION, 8, teacher={"weights": "fp8"}), architecture)
    assert eight_bits.frozen == parameters
    assert estimate_memory(manifest_of(REGRESSION, 8, teacher={"offload": True}), architecture).frozen == 0


def test_less_lives_with_checkpointing_smaller_batches_and_half_precision() -> None:
    architecture = known_architecture("ddpm-cifar10")

    def activations(**training: Any) -> int:
        return estimate_memory(manifest_of(REGRESSION, batchSize=8, **training), architecture).activations

    plain = activations()
    assert activations(activationCheckpointing=True) < 0.6 * plain
    assert activations(microBatchSize=2) < 0.5 * plain
    assert activations(precision="bf16") < plain


def test_architectures_are_found_by_name() -> None:
    for uri, name in {
        "hf://stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
        "hf://stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
        "s3://models/edm-imagenet-64x64-cond-adm": "adm-imagenet64",
    }.items():
        found = guess_architecture(uri)
        assert found is not None
        assert found.name == name
    assert guess_architecture("s3://models/mine") is None
    with pytest.raises(BadInputError, match=r"must be one of .*\bsd15\b"):
        known_architecture("sd14")
