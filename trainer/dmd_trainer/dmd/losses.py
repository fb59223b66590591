"""The losses of Distribution Matching Distillation, each a few lines to hold against the paper.

Notation: x = G(z) [B, C, H, W]; mu_real, mu_fake: x0 predictions of the teacher and of the fake score at
x_t = alpha_t x + sigma_t eps.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, per_sample

Weight = Callable[[Tensor, Tensor, NoiseLevel], Tensor]
"""(x, mu_real, level) -> [B, 1, 1, 1]: how much each sample's difference of scores counts."""


LEAST_DISTANCE = 1e-6
"""Below which mean|x - mu_real| is rounding, and would only blow its sample up."""


def normalizer_weight(x: Tensor, mu_real: Tensor, level: NoiseLevel) -> Tensor:
    """1 / mean|x - mu_real| per sample, which evens out gradients across noise levels (arXiv 2311.18828, eq. 8)."""
    distance = (x - mu_real).abs().flatten(1).mean(1)
    return per_sample(1 / distance.clamp_min(LEAST_DISTANCE), x)


def kl_weight(x: Tensor, mu_real: Tensor, level: NoiseLevel) -> Tensor:
    """alpha_t^2 / sigma_t^2: the expected gradient is then that of KL(p_fake,t || p_real,t) (arXiv 2311.18828, eq. 7).

    Since s = (alpha mu - x_t) / sigma^2, alpha (s_fake - s_real) = alpha^2 / sigma^2 (mu_fake - mu_real).
    """
    return per_sample((level.alpha / level.sigma) ** 2, x)


RATIO_WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ReverseKL": torch.ones_like,
    "ForwardKL": lambda r: r,
    "JensenShannon": lambda r: 2 * r / (1 + r),
    "SquaredHellinger": torch.sqrt,
    "Jeffreys": lambda r: (1 + r) / 2,
}
"""h(r) = r^2 f''(r) of each f-divergence D_f(p_real || p_fake) = E_fake[f(r)] with r = p_real / p_fake, as the multiple
that is 1 at r = 1 (f-distill, arXiv 2502.15681; its authors' code is NVlabs/FastGen)."""
MOST_LOG_RATIO = 3.0
"""A discriminator that is surer than this is not more often right, and one image would decide an update."""


def divergence_weight(divergence: str, logits: Tensor) -> Tensor:
    """What each sample's gradient is multiplied by for `method.divergence`: [B].

    The gradient of any f-divergence by a sample is that of the reverse KL times h(r) (arXiv 2502.15681), and the logit
    of a discriminator that sees as many real as generated images is an estimate of ln r.

    Args:
        divergence: of `RATIO_WEIGHTS`.
        logits: of the discriminator at the noised samples [B].
    """
    return RATIO_WEIGHTS[divergence](logits.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()).detach()


def distribution_matching_gradient(
    x: Tensor, mu_real: Tensor, mu_fake: Tensor, level: NoiseLevel, weight: Weight = normalizer_weight
) -> Tensor:
    """The gradient with respect to x, weight (mu_fake - mu_real): [B, C, H, W] (arXiv 2311.18828, eq. 7)."""
    return (weight(x, mu_real, level) * (mu_fake - mu_real)).detach()


def distribution_matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """The surrogate 0.5 mean (x - stopgrad(x - gradient))^2, whose derivative by x is gradient / (B C H W)."""
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().mean()


def denoising_loss(denoiser: Denoiser, x0: Tensor, noise: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """The fake score's loss on generated images, weighted as the teacher was trained: a scalar.

    The error of the network's own output, unweighted: |x0 - D(x_t)|^2 / c_out^2. That is the plain loss on eps for an
    eps network (arXiv 2006.11239, eq. 14), and sigma^-2 + sigma_data^-2 on x0 for EDM (arXiv 2206.00364, eq. 8).
    """
    prediction = denoiser(add_noise(x0, noise, level), level, condition)
    return prediction_loss(denoiser, prediction, x0, level)


def prediction_loss(denoiser: Denoiser, prediction: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The `denoising_loss` of an x0 prediction [B, C, H, W] that is there already: a scalar."""
    return ((prediction - x0) / per_sample(denoiser.scalings(level).out, x0)).square().mean()


def l2_regression_loss(generated: Tensor, reference: Tensor) -> Tensor:
    """mean (G(z_ref) - y_ref)^2 over a batch of the teacher's ODE pairs: a scalar."""
    return (generated - reference).square().mean()
