"""Distances between sets of feature vectors, real [N, D] against generated [M, D]."""

import torch
from torch import Tensor

CHUNK = 1024
"""Rows of a distance matrix held at once."""


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The squared Frechet distance of Gaussians fitted to two sets (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), in float64. The trace of the root is the sum of the roots of
    the eigenvalues of C_1^(1/2) C_2 C_1^(1/2): symmetric, so that singular covariances do no harm.
    """
    first, second = real.double(), generated.double()
    root = _symmetric_root(torch.cov(first.T))
    covariance = torch.cov(second.T)
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum()
    traces = (root @ root).trace() + covariance.trace()
    return float((first.mean(0) - second.mean(0)).square().sum() + traces - 2 * cross)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def precision(real: Tensor, generated: Tensor, k: int = 3) -> float:
    """The share of generated samples inside the real manifold (Kynkaanniemi et al., arXiv 1904.06991, eq. 1, 2)."""
    return _inside(generated, real, _radii(real, k))


def recall(real: Tensor, generated: Tensor, k: int = 3) -> float:
    """The share of real samples inside the generated manifold (arXiv 1904.06991, eq. 1, 2)."""
    return _inside(real, generated, _radii(generated, k))


def coverage(real: Tensor, generated: Tensor, k: int = 5) -> float:
    """The share of real samples with a generated one nearer than their k-th real one (arXiv 2002.09797, eq. 4)."""
    nearest = torch.cat([_distances(chunk, generated).amin(1) for chunk in real.split(CHUNK)])
    return float((nearest < _radii(real, k)).double().mean())


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """All distances of [N, D] to [M, D]: [N, M]. In float64, since |a|^2 + |b|^2 - 2ab cancels where a is near b."""
    return torch.cdist(first.double(), second.double())


def _radii(samples: Tensor, k: int) -> Tensor:
    """Each sample's distance to its k-th nearest neighbour, itself not counted: [N]."""
    return torch.cat([_distances(chunk, samples).kthvalue(k + 1).values for chunk in samples.split(CHUNK)])


def _inside(samples: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of `samples` within the radius of at least one of `centres`."""
    inside = [(_distances(chunk, centres) <= radii).any(1) for chunk in samples.split(CHUNK)]
    return float(torch.cat(inside).double().mean())
