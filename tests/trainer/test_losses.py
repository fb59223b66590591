"""The losses against their definitions, closed forms, and a distillation that must find the right distribution."""

import pytest
import torch
from torch import Tensor, nn

from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample, schedule_from_scheduler
from dmd_trainer.dmd.losses import (
    denoising_loss,
    distribution_matching_gradient,
    distribution_matching_loss,
    kl_weight,
    normalizer_weight,
)


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
