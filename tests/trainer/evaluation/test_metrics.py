"""Metrics against other libraries, closed forms and brute force."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dmd_trainer.evaluation.metrics import coverage, frechet_distance, precision, recall


def features(count: int, size: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, size, generator=generator) @ mixing * scale + shift


@pytest.mark.parametrize(("count", "size"), [(500, 16), (300, 64), (40, 64)])
def test_fid_agrees_with_torchmetrics_and_torch_fidelity(count: int, size: int) -> None:
    """(40, 64): fewer samples than dimensions, so both covariances are singular."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    real, generated = features(count, size), features(count + 10, size, 0.2, 1.1, seed=1)
    found = frechet_distance(real, generated)
    a, b = real.double(), generated.double()
    metrics = float(_compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T)))
    assert found == pytest.approx(metrics, rel=1e-6)
    statistics = [fid_features_to_statistics(x.double()) for x in (real, generated)]
    fidelity = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # On singular covariances torch-fidelity adds an epsilon of its own.
    assert found == pytest.approx(fidelity, rel=1e-6 if count > size else 1e-2)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_shift_its_square() -> None:
    real = features(400, 8)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(real, real + 0.5) == pytest.approx(8 * 0.25, rel=1e-5)


def brute_force_recall(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    between = np.linalg.norm(fake[:, None] - fake[None], axis=2)
    radii = np.sort(between, axis=1)[:, k]
    inside = [(np.linalg.norm(fake - x, axis=1) <= radii).any() for x in real]
    return float(np.mean(inside))


def test_precision_and_recall_agree_with_brute_force() -> None:
    real, fake = features(150, 4), features(170, 4, 0.7, 0.8, seed=1)
    assert recall(real, fake) == pytest.approx(brute_force_recall(real.numpy(), fake.numpy(), 3))
    assert precision(real, fake) == pytest.approx(brute_force_recall(fake.numpy(), real.numpy(), 3))
    assert recall(real, fake) < 1


@pytest.mark.parametrize("metric", [precision, recall, coverage])
def test_features_far_from_zero_are_measured_as_those_about_it(metric: Callable[[Tensor, Tensor], float]) -> None:
    real, fake = features(300, 4).round(decimals=2), features(300, 4, 0.3, 0.9, seed=1).round(decimals=2)
    far = 2.0**17  # where float32 still holds 1/64, and its squares do not
    shifted = [((x * 64).round() / 64 + far) for x in (real, fake)]
    here = [x.double() - far for x in shifted]
    assert metric(*shifted) == metric(*here)
    assert 0.1 < metric(*here) < 1


def test_recall_and_coverage_see_a_lost_mode_that_precision_does_not() -> None:
    two = torch.cat([features(200, 4), features(200, 4, 50.0, seed=2)])
    one = features(400, 4, seed=3)
    assert precision(two, one) > 0.9
    assert recall(two, one) < 0.55
    assert coverage(two, one) < 0.55
    assert coverage(two, torch.cat([one, features(400, 4, 50.0, seed=4)])) > 0.9
