"""The GAN term: its head learns on narrow and wide networks, reads no further than it must, and changes a run."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from dmd_api.loading import parse_manifest
from dmd_trainer.conditions.labels import ClassLabels
from dmd_trainer.diffusion.denoiser import Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.gan import BottleneckHead, FakeScore, discriminator_loss, gan_scale, generator_loss
from dmd_trainer.dmd.losses import denoising_loss, l2_regression_loss
from dmd_trainer.dmd.step import FakeScoreDraws, Images, Models, Noise, fake_score_losses
from dmd_trainer.families.architecture import known_architecture, read_architecture
from dmd_trainer.families.ddpm import DDPM
from dmd_trainer.families.shrinking import save_shrunken_teacher
from dmd_trainer.families.teacher import Teacher, load_teacher
from tests.conftest import MANIFEST
from tests.trainer.test_sharding import Images as RealImages

CHANCE = 2 * math.log(2)
UNETS = ("ddpm-cifar10", "edm-cifar10", "adm-imagenet64", "sd15", "sdxl")


def unet(size: int, *widths: int) -> UNet2DModel:
    torch.manual_seed(0)
    levels = len(widths)
    return UNet2DModel(
        sample_size=size,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=4,
        add_attention=False,
    )


class Bare(nn.Module):
    """A head behind convolutions that cut a picture into patches: as wide as SDXL's bottleneck in no time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, channels, 8, stride=8)
        self.head = BottleneckHead(channels, (2, 2))

    def forward(self, sample: Tensor, **arguments: Any) -> tuple[Tensor]:
        return (self.head(F.silu(self.patches(sample))),)


def discriminator(channels: int) -> nn.Module:
    if channels > 100:
        return Bare(channels)
    network = unet(16, 16, channels)
    return FakeScore(network, DDPM().tap(network))


def pictures(count: int, generator: torch.Generator) -> Tensor:
    """Squares of one colour each, with sharp edges [B, 3, 16, 16]."""
    return F.interpolate(2 * torch.rand(count, 3, 4, 4, generator=generator) - 1, scale_factor=4)


@pytest.mark.parametrize("channels", [32, 96, 1280])
def test_the_head_tells_real_images_from_blurred_ones_within_60_updates(channels: int) -> None:
    module, generator = discriminator(channels), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-4)
    losses = []
    for _ in range(60):
        real, sharp = pictures(16, generator), pictures(16, generator)
        x = torch.cat([real, F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), "replicate"), 5, 1)])
        sigma = 0.3 * torch.rand(32, 1, 1, 1, generator=generator)
        x = x + sigma * torch.randn(x.shape, generator=generator)
        (logits,) = module(x, timestep=100 * sigma.flatten(), return_dict=False, denoise=False, classify=True)
        loss = discriminator_loss(*logits.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if sum(losses[-10:]) / 10 < 0.5 * CHANCE and len(losses) >= 10:
            break
    else:
        pytest.fail(f"the loss is {losses[-1]:.2f}")
    assert abs(losses[0] - CHANCE) < 0.2


@pytest.mark.parametrize("channels", [4, 16, 32, 96, 160, 1280])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 6), (8, 8), (9, 5)])
def test_the_head_ends_with_one_value_of_an_image_and_normalises_eight_channels_at_least(
    channels: int, size: tuple[int, int]
) -> None:
    with torch.device("meta"):
        head = BottleneckHead(channels, size)
        assert head(torch.empty(3, channels, *size)).shape == (3,)
    for norm in (module for module in head.modules() if isinstance(module, nn.GroupNorm)):
        assert norm.num_channels / norm.num_groups >= min(8, channels)


@pytest.fixture(params=UNETS)
def small_teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Teacher:
    save_shrunken_teacher(known_architecture(request.param), tmp_path / "teacher", 16)
    return load_teacher(tmp_path / "teacher")


def test_a_classification_stops_at_the_bottleneck_and_is_the_same(small_teacher: Teacher) -> None:
    """Logits and gradients, bit for bit, are those of the head on what the whole network passes its bottleneck."""
    teacher = small_teacher
    network = teacher.trainable_network()
    module = FakeScore(network, teacher.family.tap(network))
    assert module.head is not None
    seen: list[Tensor] = []
    called: set[nn.Module] = set()
    network.mid_block.register_forward_hook(lambda _, __, output: seen.append(output))
    for block in network.up_blocks:
        block.register_forward_hook(lambda block, *_: called.add(block))
    denoiser = teacher.denoiser.with_network(module)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *teacher.sample_shape, generator=generator, requires_grad=True)
    level = teacher.denoiser.schedule.at(torch.tensor([100, 500]))
    condition = read_architecture(teacher.directory).conditions(2)
    inputs = [x, *module.parameters()]

    (logits,) = denoiser.call_network(x, level, condition, denoise=False, classify=True)
    assert not called
    found = torch.autograd.grad(logits.square().sum(), inputs, allow_unused=True)
    denoiser.call_network(x, level, condition)
    assert len(called) == len(network.up_blocks)
    whole = module.head(seen[-1])
    expected = torch.autograd.grad(whole.square().sum(), inputs, allow_unused=True)
    assert torch.equal(logits, whole)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert not {name for name in module.state_dict() if not name.startswith(("network.", "head."))}


@pytest.mark.parametrize("bounded", [False, True])
def test_generated_images_are_classified_as_they_are_denoised(tiny_teacher: Path, bounded: bool) -> None:
    """In one call for both, with the losses of two; apart from it where the head's noise is bounded."""
    teacher = load_teacher(tiny_teacher)
    network = teacher.trainable_network().double()
    module = FakeScore(network, teacher.family.tap(network))
    calls: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    mu_fake = teacher.denoiser.with_network(module)
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(3, *teacher.sample_shape, generator=generator, dtype=torch.float64)

    schedule = teacher.denoiser.schedule
    noises = [Noise(noise(), schedule.at(torch.tensor(indices))) for indices in ([1, 5, 9], [20, 300, 999], [0, 7, 70])]
    real = Images(noise(), {"class_labels": torch.tensor([1, 2, 3])})
    generated = Images(noise(), {"class_labels": torch.tensor([4, 5, 6])})
    models = Models(
        Generator(teacher.denoiser, (999,)), Guided(teacher.denoiser), mu_fake, regression_loss=l2_regression_loss
    )
    denoising, on_real, apart = noises
    losses = fake_score_losses(
        models, generated, FakeScoreDraws(denoising, (real, on_real), apart if bounded else None)
    )
    assert calls == ([3, 3, 3] if bounded else [3, 3])
    found = torch.autograd.grad(sum(losses.values()), list(module.parameters()))
    (one,), (two,) = (
        mu_fake.call_network(drawn.add_to(images), drawn.level, condition, denoise=False, classify=True)
        for (images, condition), drawn in ((real, on_real), (generated, apart if bounded else denoising))
    )
    expected = {
        "fake_score": denoising_loss(mu_fake, generated.images, *denoising, generated.condition),
        "gan_discriminator": discriminator_loss(one, two),
    }
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    gradients = torch.autograd.grad(sum(expected.values()), list(module.parameters()))
    torch.testing.assert_close(found, gradients, rtol=1e-8, atol=1e-12)


def gradient_norms(size: int) -> tuple[float, float]:
    """Of a fresh head's losses, over those of a mean over an image's values: by the images, and by the encoder."""
    network = unet(size, 16, 32, 32)
    tap = DDPM().tap(network)
    assert tap is not None
    module = FakeScore(network, tap)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    (logits,) = module(x, timestep=100, return_dict=False, denoise=False, classify=True)
    by_image = torch.autograd.grad(generator_loss(logits), x, retain_graph=True)[0].norm()
    matching = torch.autograd.grad((x * x.sign().detach()).mean(), x)[0].norm()
    encoder = list(network.down_blocks.parameters())

    def by_encoder(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder)]).norm()

    discriminator = by_encoder(discriminator_loss(*logits.chunk(2)))
    denoised = module(x, timestep=100, return_dict=False)[0]
    denoising = by_encoder((denoised - torch.randn_like(denoised)).square().mean())
    return float(by_image / matching), float(discriminator / denoising)


def test_weights_mean_the_same_at_any_size() -> None:
    """At 16 and 64 pixels: undivided, the losses' gradients would count four times as much at the larger."""
    small, large = gradient_norms(16), gradient_norms(64)
    scale = gan_scale((3, 64, 64)) / gan_scale((3, 16, 16))
    assert scale == 4
    for one, other in zip(small, large, strict=True):
        assert other / one > 2
        assert other / scale == pytest.approx(one, rel=0.5)


def distilled(teacher: Teacher, updates: int = 2, **method: Any) -> Distillation:
    content = copy.deepcopy(MANIFEST)
    spec = content["spec"]
    spec["data"]["images"] = {"uri": "builtin://digits"}
    spec["method"] = {"name": "DMD2", "fakeScoreUpdates": 1, **method}
    spec["training"] |= {"batchSize": 4, "learningRate": 1e-3, "maxLoss": 1e15}
    data = TrainingData(ClassLabels(10), real_images=RealImages(teacher.sample_shape))
    made = Distillation(teacher, parse_manifest(content).spec, data, l2_regression_loss)
    for _ in range(updates):
        made.step()
    return made


def same(one: Distillation, other: Distillation) -> bool:
    weights = (d.generator_network.module.state_dict().values() for d in (one, other))
    return all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_a_run_with_a_gan_differs_from_one_without(tiny_teacher: Path) -> None:
    teacher = load_teacher(tiny_teacher)
    without = distilled(teacher)
    assert same(without, distilled(teacher))
    assert not same(without, distilled(teacher, gan={}))
    # The generator's own share alone, and the head's alone, which trains the fake score on real images.
    assert not same(without, distilled(teacher, gan={"guidanceWeight": 0}))
    assert not same(without, distilled(teacher, gan={"generatorWeight": 0}))
    assert same(without, distilled(teacher, gan={"generatorWeight": 0, "guidanceWeight": 0}))


@pytest.mark.parametrize("divergence", ["ForwardKL", "JensenShannon", "SquaredHellinger", "Jeffreys"])
def test_a_divergence_weights_the_run(tiny_teacher: Path, divergence: str) -> None:
    teacher = load_teacher(tiny_teacher)
    plain = distilled(teacher, gan={})
    assert same(plain, distilled(teacher, gan={}, divergence="ReverseKL"))
    assert not same(plain, distilled(teacher, gan={}, divergence=divergence))


def test_the_discriminator_sees_no_more_noise_than_it_may(tiny_teacher: Path) -> None:
    teacher = load_teacher(tiny_teacher)
    schedule = teacher.denoiser.schedule
    for options, highest in (({"maxTimestep": 3}, 3), ({}, len(schedule) - 1)):
        draws = distilled(teacher, updates=0, gan=options).draws
        indices = list(range(400))
        drawn = draws.generator(0, indices)
        condition = drawn.latent.condition
        fake = draws.fake_score(0, 0, 0, [indices], condition)
        _, on_real = fake.gan or pytest.fail("no draws")
        for noise in (drawn.gan, on_real, fake.on_generated or fake.denoising):
            assert noise is not None
            assert float(noise.level.sigma.max()) <= float(schedule.sigmas[highest])
            assert float(noise.level.sigma.max()) > 0.8 * float(schedule.sigmas[highest])


def test_distributions_are_matched_at_the_levels_that_are_given(tiny_teacher: Path) -> None:
    teacher = load_teacher(tiny_teacher)
    schedule = teacher.denoiser.schedule
    draws = distilled(teacher, updates=0, matchingNoise={"minTimestep": 300, "maxTimestep": 302}).draws
    indices = list(range(60))
    given = set(schedule.sigmas[300:303].tolist())
    assert set(draws.generator(0, indices).matching.level.sigma.tolist()) == given
    # The fake score is asked for nothing else, and learns nothing else.
    assert set(draws.fake_score(0, 0, 0, [indices], {}).denoising.level.sigma.tolist()) == given
    everywhere = distilled(teacher, updates=0).draws.fake_score(0, 0, 0, [list(range(400))], {}).denoising.level.sigma
    assert float(everywhere.max()) > float(schedule.sigmas[900])


@pytest.mark.parametrize(("gan", "low", "high"), [({}, 300, 302), ({"maxTimestep": 3}, 0, 3)])
def test_the_discriminator_sees_the_levels_that_are_matched_or_its_own(
    tiny_teacher: Path, gan: dict[str, int], low: int, high: int
) -> None:
    teacher = load_teacher(tiny_teacher)
    schedule = teacher.denoiser.schedule
    matching = {"minTimestep": 300, "maxTimestep": 302}
    draws = distilled(teacher, updates=0, gan=gan, matchingNoise=matching).draws
    drawn = draws.generator(0, list(range(60)))
    fake = draws.fake_score(0, 0, 0, [list(range(60))], drawn.latent.condition)
    _, on_real = fake.gan or pytest.fail("no draws")
    for noise in (drawn.gan, on_real, fake.on_generated or fake.denoising):
        assert noise is not None
        assert set(noise.level.sigma.tolist()) == set(schedule.sigmas[low : high + 1].tolist())


def test_steps_are_drawn_for_each_sample_and_reached_by_those_before(tiny_teacher: Path) -> None:
    """Each sample's input is that of its own step, as if its batch had no other."""
    teacher = load_teacher(tiny_teacher)
    draws = distilled(teacher, updates=0, generatorSteps=4).draws
    indices = list(range(32))
    latent = draws.generator(0, indices).latent
    assert set(latent.step.tolist()) == {0, 1, 2, 3}
    assert torch.equal(draws.generator(0, indices[8:16]).latent.step, latent.step[8:16])
    generator = Generator(
        Denoiser(teacher.trainable_network(), teacher.denoiser.schedule, teacher.denoiser.prediction),
        (999, 749, 499, 249),
    )
    with torch.no_grad():
        found = generator.input(latent.noise, latent.condition, latent.step)
        for row, step in enumerate(latent.step):
            part = {key: value[row : row + 1] for key, value in latent.condition.items()}
            alone = generator.input(latent.noise[row : row + 1], part, step[None])
            torch.testing.assert_close(found[row : row + 1], alone)
        # All ranks call a sharded network as often, whatever their samples' steps are.
        calls: list[int] = []
        generator.denoiser.network.register_forward_hook(lambda *_: calls.append(1))
        for step in (torch.zeros(32, dtype=torch.int64), latent.step):
            calls.clear()
            generator.input(latent.noise, latent.condition, step)
            assert len(calls) == 3
