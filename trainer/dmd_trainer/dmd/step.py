"""One training step of Distribution Matching Distillation: drawn tensors in, losses out.

Algorithm 1 of DMD (arXiv 2311.18828) and its DMD2 form (arXiv 2405.14867, section 4), without anything random, any
optimiser or any process: `distillation.py` draws, accumulates and updates, the memory estimate runs these functions on
fake tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition, Denoiser, X0Prediction
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise
from dmd_trainer.dmd.gan import discriminator_loss, generator_loss
from dmd_trainer.dmd.losses import denoising_loss, distribution_matching_gradient, distribution_matching_loss

RegressionLoss = Callable[[Tensor, Tensor], Tensor]
"""(generated, reference) [B, C, H, W] each -> a scalar."""


@dataclass(frozen=True)
class Models:
    """What a step calls.

    Attributes:
        generator: trained.
        mu_real: the teacher's x0 prediction, guided or not.
        mu_fake: the fake score's; None where the generator learns by regression alone.
        regression_loss: between the generator's images and the teacher's.
    """

    generator: Generator
    mu_real: X0Prediction
    mu_fake: Denoiser | None
    regression_loss: RegressionLoss


class Noise(NamedTuple):
    """Drawn noise, and the levels at which it is added.

    Attributes:
        eps: [B, C, H, W].
        level: [B].
    """

    eps: Tensor
    level: NoiseLevel

    def add_to(self, x: Tensor) -> Tensor:
        """x_t = alpha_t x + sigma_t eps [B, C, H, W]."""
        return add_noise(x, self.eps, self.level)


class Latent(NamedTuple):
    """What the generator starts from.

    Attributes:
        noise: [B, C, H, W], unit variance.
        condition: each [B, ...].
        step: the number of the generator's step that is trained.
    """

    noise: Tensor
    condition: Condition
    step: int


class PairBatch(NamedTuple):
    """Some of the teacher's ODE pairs.

    Attributes:
        noise: [B, C, H, W].
        reference: the teacher's images of that noise [B, C, H, W].
        condition: each [B, ...].
    """

    noise: Tensor
    reference: Tensor
    condition: Condition


class Images(NamedTuple):
    """Images without gradients, generated or real.

    Attributes:
        images: [B, C, H, W].
        condition: each [B, ...].
    """

    images: Tensor
    condition: Condition


class GeneratorDraws(NamedTuple):
    """Everything random in one generator update.

    Attributes:
        latent: what the images are generated from.
        matching: for the scores' inputs.
        pairs: where the method regresses on them.
        gan: for the discriminator's input, where there is a GAN term.
    """

    latent: Latent
    matching: Noise
    pairs: PairBatch | None = None
    gan: Noise | None = None


class FakeScoreDraws(NamedTuple):
    """Everything random in one update of the fake score, but for the generated images.

    Attributes:
        denoising: for the denoising loss.
        gan: real images, the noise that is added to them, and to the generated ones; None without a GAN term.
    """

    denoising: Noise
    gan: tuple[Images, Noise, Noise] | None = None


def generator_losses(models: Models, draws: GeneratorDraws) -> tuple[dict[str, Tensor], Images]:
    """The losses of one generator update by name, and the images that the fake score learns from next."""
    generator, mu_fake, latent, pairs = models.generator, models.mu_fake, draws.latent, draws.pairs
    assert mu_fake is not None, "without a fake score there is `regression_alone`"
    x_in = _input(generator, latent)
    if pairs is None:
        x = generator.step(x_in, latent.condition, latent.step)
    else:
        # One call for both losses: a generator pass over twice the batch costs less than two passes.
        both = {key: torch.cat([value, pairs.condition[key]]) for key, value in latent.condition.items()}
        x_pairs_in = generator.input(pairs.noise, pairs.condition, 0)
        x, x_pairs = generator.step(torch.cat([x_in, x_pairs_in]), both, latent.step).chunk(2)

    level = draws.matching.level
    with torch.no_grad():
        x_t = draws.matching.add_to(x)
        gradient = distribution_matching_gradient(
            x, models.mu_real(x_t, level, latent.condition), mu_fake(x_t, level, latent.condition), level
        )
    losses = {"distribution_matching": distribution_matching_loss(x, gradient)}
    if pairs is not None:
        losses["regression"] = models.regression_loss(x_pairs, pairs.reference.to(x))
    if draws.gan is not None:
        losses["gan_generator"] = generator_loss(_classify(mu_fake, x, latent.condition, draws.gan))
    return losses, Images(x.detach(), latent.condition)


def regression_alone(models: Models, pairs: PairBatch) -> dict[str, Tensor]:
    """The only loss of a generator update where there is no fake score to match distributions with."""
    x_in = models.generator.input(pairs.noise, pairs.condition, 0)
    x = models.generator.step(x_in, pairs.condition, 0)
    return {"regression": models.regression_loss(x, pairs.reference.to(x))}


@torch.no_grad()
def generate(models: Models, latent: Latent) -> Images:
    """The generator's images for a further update of the fake score."""
    x_in = models.generator.input(latent.noise, latent.condition, latent.step)
    return Images(models.generator.step(x_in, latent.condition, latent.step), latent.condition)


def fake_score_losses(models: Models, generated: Images, draws: FakeScoreDraws) -> dict[str, Tensor]:
    """The losses of one update of the fake score, and of the GAN's head, by name."""
    mu_fake, (eps, level) = models.mu_fake, draws.denoising
    assert mu_fake is not None, "it is what is updated"
    x, condition = generated
    losses = {"fake_score": denoising_loss(mu_fake, x, eps, level, condition)}
    if draws.gan is not None:
        real, on_real, on_generated = draws.gan
        losses["gan_discriminator"] = discriminator_loss(
            _classify(mu_fake, real.images, real.condition, on_real), _classify(mu_fake, x, condition, on_generated)
        )
    return losses


@torch.no_grad()
def _input(generator: Generator, latent: Latent) -> Tensor:
    return generator.input(latent.noise, latent.condition, latent.step)


def _classify(mu_fake: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Tensor:
    """The GAN head's logits [B] of noised images (arXiv 2405.14867, section 4.3)."""
    return mu_fake.call_network(noise.add_to(x), noise.level, condition, classify=True).to(x.dtype)
