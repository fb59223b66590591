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

from dmd_trainer.diffusion.denoiser import Condition, Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample
from dmd_trainer.dmd.gan import discriminator_loss, generator_loss
from dmd_trainer.dmd.losses import (
    denoising_loss,
    distribution_matching_gradient,
    distribution_matching_loss,
    divergence_weight,
    prediction_loss,
)

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
        divergence: that distributions are matched in; any but the reverse KL reads the GAN's head.
    """

    generator: Generator
    mu_real: Guided
    mu_fake: Denoiser | None
    regression_loss: RegressionLoss
    divergence: str = "ReverseKL"


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
        step: the numbers of the generator's steps that are trained [B], on the CPU.
    """

    noise: Tensor
    condition: Condition
    step: Tensor


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
        guidance: for the teacher's input where guidance has noise of its own.
    """

    latent: Latent
    matching: Noise
    pairs: PairBatch | None = None
    gan: Noise | None = None
    guidance: Noise | None = None


class FakeScoreDraws(NamedTuple):
    """Everything random in one update of the fake score, but for the generated images.

    Attributes:
        denoising: for the denoising loss.
        gan: real images, and the noise that is added to them; None without a GAN term.
        on_generated: the noise at which generated images are classified; None: that of `denoising`.
    """

    denoising: Noise
    gan: tuple[Images, Noise] | None = None
    on_generated: Noise | None = None


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
        x_pairs_in = generator.input(pairs.noise, pairs.condition, _first(pairs.noise))
        steps = torch.cat([latent.step, _first(pairs.noise)])
        x, x_pairs = generator.step(torch.cat([x_in, x_pairs_in]), both, steps).chunk(2)

    gradient = _matching_gradient(models, mu_fake, x, latent.condition, draws)
    losses = {"distribution_matching": distribution_matching_loss(x, gradient)}
    if pairs is not None:
        losses["regression"] = models.regression_loss(x_pairs, pairs.reference.to(x))
    if draws.gan is not None:
        x_t = draws.gan.add_to(x)
        losses["gan_generator"] = generator_loss(_classify(mu_fake, x_t, draws.gan.level, latent.condition))
    return losses, Images(x.detach(), latent.condition)


def regression_alone(models: Models, pairs: PairBatch) -> dict[str, Tensor]:
    """The only loss of a generator update where there is no fake score to match distributions with."""
    first = _first(pairs.noise)
    x_in = models.generator.input(pairs.noise, pairs.condition, first)
    x = models.generator.step(x_in, pairs.condition, first)
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
    if draws.gan is None:
        return {"fake_score": denoising_loss(mu_fake, x, eps, level, condition)}
    real, on_real = draws.gan
    if draws.on_generated is None:
        # One call for both: as far as the bottleneck, denoising and classifying are the same.
        x_t = draws.denoising.add_to(x)
        output, of_generated = mu_fake.call_network(x_t, level, condition, classify=True)
        denoising = prediction_loss(mu_fake, mu_fake.x0(x_t, level, output), x, level)
    else:
        denoising = denoising_loss(mu_fake, x, eps, level, condition)
        of_generated = _classify(mu_fake, draws.on_generated.add_to(x), draws.on_generated.level, condition)
    of_real = _classify(mu_fake, on_real.add_to(real.images), on_real.level, real.condition)
    return {"fake_score": denoising, "gan_discriminator": discriminator_loss(of_real, of_generated.to(of_real))}


@torch.no_grad()
def _input(generator: Generator, latent: Latent) -> Tensor:
    return generator.input(latent.noise, latent.condition, latent.step)


@torch.no_grad()
def _matching_gradient(
    models: Models, mu_fake: Denoiser, x: Tensor, condition: Condition, draws: GeneratorDraws
) -> Tensor:
    """The gradient of distribution matching by the images `x`: [B, C, H, W].

    Guidance belongs to the teacher's prediction. Where it has noise of its own, the gradient is a sum: matching without
    guidance, and guidance's share, the same difference with the unguided teacher in the fake score's place (decoupled
    DMD, arXiv 2511.22677). With the same noise and weight for both, that is one and the same gradient.
    """
    level = draws.matching.level
    x_t = draws.matching.add_to(x)
    real = models.mu_real if draws.guidance is None else models.mu_real.denoiser
    gradient = distribution_matching_gradient(x, real(x_t, level, condition), mu_fake(x_t, level, condition), level)
    if models.divergence != "ReverseKL":
        logits = _classify(mu_fake, x_t, level, condition)
        gradient = per_sample(divergence_weight(models.divergence, logits), x) * gradient
    if draws.guidance is not None:
        level = draws.guidance.level
        plain, guided = models.mu_real.both(draws.guidance.add_to(x), level, condition)
        gradient = gradient + distribution_matching_gradient(x, guided, plain, level)
    return gradient


def _classify(mu_fake: Denoiser, x_t: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """The GAN head's logits [B] of noised images (arXiv 2405.14867, section 4.3)."""
    (logits,) = mu_fake.call_network(x_t, level, condition, denoise=False, classify=True)
    return logits.to(x_t.dtype)


def _first(noise: Tensor) -> Tensor:
    """The number of a generator's first step, for each sample [B]."""
    return torch.zeros(len(noise), dtype=torch.int64)
