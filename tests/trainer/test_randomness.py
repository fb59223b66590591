"""Keyed draws are functions of their key."""

import torch

from dmd_trainer.diffusion.randomness import KeyedRandom


def test_a_sample_does_not_depend_on_its_batch() -> None:
    whole = KeyedRandom(3, "noise", 7, range(8))
    labels, noise = whole.integers(0, 10), whole.normal((2, 3))
    part = KeyedRandom(3, "noise", 7, range(4, 6))
    assert torch.equal(part.integers(0, 10), labels[4:6])
    assert torch.equal(part.normal((2, 3)), noise[4:6])


def test_every_part_of_the_key_counts() -> None:
    base = KeyedRandom(0, "a", 0, [0]).normal((64,))
    others = [
        KeyedRandom(1, "a", 0, [0]),
        KeyedRandom(0, "b", 0, [0]),
        KeyedRandom(0, "a", 1, [0]),
        KeyedRandom(0, "a", 0, [1]),
    ]
    for other in others:
        assert not torch.equal(other.normal((64,)), base)


def test_draws_are_standard_normal_and_uniform() -> None:
    random = KeyedRandom(0, "moments", 0, range(20_000))
    labels, noise = random.integers(0, 10), random.normal((4,))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert torch.bincount(labels, minlength=10).float().sub(2000).abs().max() < 200


def test_neighbouring_steps_and_samples_are_uncorrelated() -> None:
    rows = torch.cat([KeyedRandom(0, "x", step, range(50)).normal((400,)) for step in range(4)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.3
