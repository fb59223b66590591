"""The losses against their definitions, closed forms, and a distillation that must find the right distribution."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from dmd_api.spec import Method
from dmd_trainer.diffusion.denoiser import Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample, schedule_from_scheduler
from dmd_trainer.dmd.losses import (
    LEAST_DISTANCE,
    MOST_LOG_RATIO,
    RATIO_WEIGHTS,
    denoising_loss,
    distribution_matching_gradient,
    distribution_matching_loss,
    divergence_weight,
    kl_weight,
    normalizer_weight,
)
from dmd_trainer.dmd.step import GeneratorDraws, Latent, Models, Noise, generator_losses


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def levels(alpha: float, sigma: float, batch: int) -> NoiseLevel:
    one = torch.ones(batch, dtype=torch.float64)
    return NoiseLevel(alpha * one, sigma * one, 0 * one)


def gaussian_denoiser(mean: Tensor, variance: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
    """E[x0 | x_t] for x0 ~ N(mean, variance), elementwise."""
    alpha, sigma = per_sample(level.alpha, x_t), per_sample(level.sigma, x_t)
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)


@pytest.mark.parametrize("weight", [normalizer_weight, kl_weight])
def test_autograd_gives_the_stated_gradient(weight: object, generator: torch.Generator) -> None:
    shape = (5, 2, 3, 3)
    x, real, fake = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    x.requires_grad_(True)
    gradient = distribution_matching_gradient(x, real, fake, levels(0.8, 0.6, 5), weight)  # type: ignore[arg-type]
    distribution_matching_loss(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient / x.numel(), rtol=1e-12, atol=0)


def test_the_normalizer_is_the_mean_distance_per_sample(generator: torch.Generator) -> None:
    x, real, fake = (torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    found = distribution_matching_gradient(x, real, fake, levels(1, 1, 3))
    for i in range(3):
        torch.testing.assert_close(found[i], (fake[i] - real[i]) / (x[i] - real[i]).abs().mean())


def test_a_distance_of_rounding_alone_blows_no_sample_up() -> None:
    x = torch.ones(2, 1, 2, 2)
    real = torch.stack([x[0], x[1] - 2 * LEAST_DISTANCE])
    weight = normalizer_weight(x, real, levels(1, 1, 2)).flatten()
    torch.testing.assert_close(weight, torch.tensor([1e6, 5e5]), rtol=0.05, atol=0)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.7), (0.8, 0.6), (0.3, 0.95)])
def test_with_the_kl_weight_the_mean_gradient_is_that_of_the_kl(
    alpha: float, sigma: float, generator: torch.Generator
) -> None:
    """x = mu + s z against N(m, v): dKL/dmu and dKL/ds of the noised Gaussians, by autograd on the closed form."""
    count = 400_000
    mu = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    m, v = torch.tensor(-0.5, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)

    fake_variance, real_variance = alpha**2 * s**2 + sigma**2, alpha**2 * v + sigma**2
    kl = 0.5 * (
        fake_variance / real_variance
        + alpha**2 * (mu - m) ** 2 / real_variance
        - 1
        + torch.log(real_variance / fake_variance)
    )
    expected = torch.autograd.grad(kl, (mu, s))

    z, eps = (torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    level = levels(alpha, sigma, count)
    x = mu + s * z
    x_t = add_noise(x.detach(), eps, level)
    real = gaussian_denoiser(m, v, x_t, level)
    fake = gaussian_denoiser(mu.detach(), s.detach() ** 2, x_t, level)
    gradient = distribution_matching_gradient(x, real, fake, level, kl_weight)
    found = torch.autograd.grad(distribution_matching_loss(x, gradient), (mu, s))

    for value, analytic, samples in zip(found, expected, (gradient, gradient * z), strict=True):
        error = samples.std() / count**0.5
        assert abs(value - analytic) < 4 * error


F_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "ReverseKL": (lambda r: -r.log(), 1),
    "ForwardKL": (lambda r: r * r.log(), 1),
    "JensenShannon": (lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(), 2),
    "SquaredHellinger": (lambda r: (r.sqrt() - 1).square(), 2),
    "Jeffreys": (lambda r: (r - 1) * r.log(), 0.5),
}
"""f of D_f(p_real || p_fake) = E_fake[f(p_real / p_fake)], and the multiple that `losses.py` takes of it."""


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_with_the_ratios_weight_the_mean_gradient_is_that_of_the_divergence(
    divergence: str, generator: torch.Generator
) -> None:
    """x = mu + s z against N(m, v), noised: dD_f/dmu and dD_f/ds by autograd on the integral over a grid."""
    f, multiple = F_DIVERGENCES[divergence]
    count, alpha, sigma = 400_000, 0.8, 0.6
    mu = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    m, v = torch.tensor(-0.2, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)

    def log_real(x_t: Tensor) -> Tensor:
        return Normal(alpha * m, (alpha**2 * v + sigma**2).sqrt()).log_prob(x_t)

    def log_fake(x_t: Tensor) -> Tensor:
        return Normal(alpha * mu, (alpha**2 * s**2 + sigma**2).sqrt()).log_prob(x_t)

    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = log_fake(grid)
    value = torch.trapezoid(density.exp() * f((log_real(grid) - density).exp()), grid)
    expected = torch.autograd.grad(multiple * value, (mu, s))
    if divergence == "ForwardKL":
        closed = torch.distributions.kl_divergence(
            Normal(alpha * m, (alpha**2 * v + sigma**2).sqrt()), Normal(alpha * mu, (alpha**2 * s**2 + sigma**2).sqrt())
        )
        torch.testing.assert_close(value, closed, rtol=1e-6, atol=0)

    z, eps = (torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    level = levels(alpha, sigma, count)
    x = mu + s * z
    x_t = add_noise(x.detach(), eps, level)
    real = gaussian_denoiser(m, v, x_t, level)
    fake = gaussian_denoiser(mu.detach(), s.detach() ** 2, x_t, level)
    logits = (log_real(x_t) - log_fake(x_t)).flatten()  # what a discriminator that has learnt all there is would say
    weight = per_sample(divergence_weight(divergence, logits), x_t)
    gradient = weight * distribution_matching_gradient(x, real, fake, level, kl_weight)
    found = torch.autograd.grad(distribution_matching_loss(x, gradient), (mu, s))
    for number, analytic, samples in zip(found, expected, (gradient, gradient * z), strict=True):
        assert abs(number - analytic) < 4 * samples.std() / count**0.5


def test_all_divergences_weigh_alike_where_both_are_equally_likely_and_an_outlier_is_bounded() -> None:
    for divergence in RATIO_WEIGHTS:
        one, most, beyond = divergence_weight(divergence, torch.tensor([0.0, MOST_LOG_RATIO, 1e9]))
        assert one == 1
        assert most == beyond
    assert sorted(RATIO_WEIGHTS) == sorted(F_DIVERGENCES)
    assert set(RATIO_WEIGHTS) == set(get_args(Method.model_fields["divergence"].annotation))


class _Scaled(nn.Module):
    """A network whose output depends on its condition."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, sample: Tensor, *, c: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.factor * sample + c.reshape(-1, 1, 1, 1),)


def test_guidance_with_noise_of_its_own_is_matched_apart(generator: torch.Generator) -> None:
    """Matching without guidance at its noise, and guidance's share at its own; together nothing is counted twice."""
    schedule = schedule_from_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
    teacher, fake = (Denoiser(_Scaled(factor), schedule, Prediction.SAMPLE) for factor in (0.5, 0.3))
    start = Generator(Denoiser(_Scaled(0.9), schedule, Prediction.SAMPLE), (999,))
    models = Models(start, Guided(teacher, 3.0, {"c": torch.zeros(1)}), fake, lambda *_: torch.zeros(()))
    latent, eps, own = (torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    condition = {"c": torch.tensor([0.7, -0.4])}
    matching = Noise(eps, schedule.at(torch.tensor([100, 300])))
    guidance = Noise(own, schedule.at(torch.tensor([600, 800])))
    draws = GeneratorDraws(Latent(latent, condition, torch.zeros(2, dtype=torch.int64)), matching, guidance=guidance)
    losses, (x, _) = generator_losses(models, draws)

    c = condition["c"].double().reshape(-1, 1, 1, 1)
    x_t, x_tau = matching.add_to(x), guidance.add_to(x)
    plain, guided = 0.5 * x_tau + c, 0.5 * x_tau + 3 * c
    matched = (0.3 * x_t - 0.5 * x_t) / (x - 0.5 * x_t - c).abs().mean((1, 2, 3), keepdim=True)
    share = (plain - guided) / (x - guided).abs().mean((1, 2, 3), keepdim=True)
    expected = 0.5 * (matched + share).square().mean()
    torch.testing.assert_close(losses["distribution_matching"], expected, rtol=1e-6, atol=0)


def test_dmd_brings_a_linear_generator_to_the_teachers_mean_and_covariance(generator: torch.Generator) -> None:
    """Both scores in closed form: the teacher's, and that of the generator's own Gaussian."""
    mean = torch.tensor([0.7, -1.2], dtype=torch.float64)
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
    covariance = factor @ factor.T
    weight = torch.eye(2, dtype=torch.float64).requires_grad_(True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.03)
    schedule = schedule_from_scheduler({"_class_name": "EDMEulerScheduler"})
    steps = 1200

    def posterior_mean(center: Tensor, spread: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        noise = sigma.reshape(-1, 1, 1) ** 2 * torch.eye(2, dtype=torch.float64)
        return center + torch.linalg.solve(spread + noise, (x_t - center)[..., None])[..., 0] @ spread

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        z, eps = (torch.randn(256, 2, dtype=torch.float64, generator=generator) for _ in range(2))
        x = z @ weight.T + bias
        level = schedule.at(torch.randint(300, 700, (256,), generator=generator))
        x_t = x.detach() + level.sigma[:, None] * eps
        real = posterior_mean(mean, covariance, x_t, level.sigma)
        fake = posterior_mean(bias.detach(), (weight @ weight.T).detach(), x_t, level.sigma)
        images = x[:, :, None, None]
        gradient = distribution_matching_gradient(images, real[:, :, None, None], fake[:, :, None, None], level)
        loss = distribution_matching_loss(images, gradient)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(bias.detach(), mean, rtol=0, atol=0.05)
    torch.testing.assert_close((weight @ weight.T).detach(), covariance, rtol=0, atol=0.08)


class _Affine(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (0.3 * sample + 0.1,)


def test_the_fake_scores_loss_is_plain_on_eps_and_weighted_as_edm(generator: torch.Generator) -> None:
    x0, eps = (torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    vp = schedule_from_scheduler({"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
    level = vp.at(torch.tensor([10, 200, 500, 900]))
    x_t = add_noise(x0, eps, level)
    loss = denoising_loss(Denoiser(_Affine(), vp, Prediction.EPSILON), x0, eps, level, {})
    torch.testing.assert_close(loss, (0.3 * x_t + 0.1 - eps).square().mean(), rtol=1e-9, atol=0)

    edm = schedule_from_scheduler({"_class_name": "EDMEulerScheduler", "sigma_data": 0.6})
    denoiser = Denoiser(_Affine(), edm, Prediction.EDM)
    level = edm.at(torch.tensor([10, 200, 500, 900]))
    weight = per_sample(level.sigma**-2 + 0.6**-2, x0)
    x0_error = (denoiser(add_noise(x0, eps, level), level, {}) - x0).square()
    torch.testing.assert_close(
        denoising_loss(denoiser, x0, eps, level, {}), (weight * x0_error).mean(), rtol=1e-9, atol=0
    )
