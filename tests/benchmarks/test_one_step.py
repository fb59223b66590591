"""The methods of the comparison against closed forms, and what they cost against what they may."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.one_step import emoji_methods
from benchmarks.one_step.consistency import consistency_function, consistency_loss, heun_step
from benchmarks.one_step.distribution_matching import TO_THE_HEAD, first_regression
from benchmarks.one_step.emoji_setting import Setting as EmojiSetting
from benchmarks.one_step.emoji_setting import ddim_levels, emoji_setting, level_at
from benchmarks.one_step.emoji_setting import ddim_step as latent_ddim_step
from benchmarks.one_step.figure import plot
from benchmarks.one_step.methods import METHODS
from benchmarks.one_step.pairs import TeacherPairs, make_pairs, pair_cost
from benchmarks.one_step.progressive import ddim_step, halvable_sigmas, two_steps_target
from benchmarks.one_step.reflow import reflow_loss, velocity
from benchmarks.one_step.runs import Run
from benchmarks.one_step.setting import FORWARD, UPDATE, Setting, one_step
from benchmarks.one_step.tasks import digits
from benchmarks.one_step.teacher import euler
from benchmarks.one_step.training import follow, train
from benchmarks.runs import Runs
from torch import Tensor, nn

from dmd_trainer.diffusion.denoiser import Condition, Denoiser
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, per_sample, schedule_from_scheduler
from dmd_trainer.diffusion.solvers import heun
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.families.teacher import Teacher

SCHEDULE = schedule_from_scheduler({"_class_name": "EDMEulerScheduler", "sigma_data": 0.75})
SPREAD = 0.5
LOW, HIGH = float(SCHEDULE.sigmas[0]), float(SCHEDULE.sigmas[-1])


class _GaussianNetwork(nn.Module):
    """Of the exact denoiser where the data is N(0, SPREAD^2): D(x, sigma) = x SPREAD^2 / (SPREAD^2 + sigma^2)."""

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        sigma, data = (4 * timestep.double()).exp(), 0.75
        into = (sigma**2 + data**2).rsqrt()
        wanted = SPREAD**2 / (SPREAD**2 + sigma**2) - data**2 * into**2
        return (per_sample(wanted / (sigma * data * into**2), sample) * sample,)


GAUSSIAN = Denoiser(_GaussianNetwork(), SCHEDULE, Prediction.EDM)


def _normal(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _solution(x: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """The Gaussian's probability-flow ODE: x stays the same multiple of the marginal's standard deviation."""
    return x * per_sample(((SPREAD**2 + following**2) / (SPREAD**2 + sigma**2)).sqrt(), x)


def test_consistency_function_is_the_identity_at_the_smallest_sigma() -> None:
    x = _normal(0)
    torch.testing.assert_close(consistency_function(GAUSSIAN, x, SCHEDULE.sigmas[:1].expand(6), {}), x)


def test_consistency_function_is_the_denoiser_at_the_largest_sigma() -> None:
    x, sigma = HIGH * _normal(1), SCHEDULE.sigmas[-1:].expand(6)
    expected = GAUSSIAN(x, SCHEDULE.at_sigma(sigma), {})
    torch.testing.assert_close(consistency_function(GAUSSIAN, x, sigma, {}), expected, rtol=1e-3, atol=1e-3)


def test_the_consistency_target_beside_the_boundary_is_the_step_of_the_teacher() -> None:
    """At sigma' = sigma_min the target is x' itself, so the loss is the distance to it (eq. 7)."""
    x = _normal(2)
    sigma, following = SCHEDULE.sigmas[1:2].expand(6), SCHEDULE.sigmas[:1].expand(6)
    stepped = heun_step(GAUSSIAN, x, sigma, following, {})
    expected = (consistency_function(GAUSSIAN, x, sigma, {}) - stepped).square().mean()
    torch.testing.assert_close(consistency_loss(GAUSSIAN, GAUSSIAN, GAUSSIAN, x, sigma, following, {}), expected)


def test_heun_step_follows_the_ode_to_second_order() -> None:
    x, sigma = _normal(3), torch.full((6,), 1.0, dtype=torch.float64)
    errors = []
    for step in (0.02, 0.01):
        found = heun_step(GAUSSIAN, x, sigma, sigma - step, {})
        errors.append(float((found - _solution(x, sigma, sigma - step)).abs().max()))
    assert 7 < errors[0] / errors[1] < 9  # the error of one step is of third order


def test_one_step_to_the_progressive_target_is_two_ddim_steps() -> None:
    x = 3 * _normal(4)
    sigma, middle, following = (torch.full((6,), value, dtype=torch.float64) for value in (3.0, 1.2, 0.4))
    target = two_steps_target(GAUSSIAN, x, sigma, middle, following, {})
    one = target + per_sample(following / sigma, x) * (x - target)
    two = ddim_step(GAUSSIAN, ddim_step(GAUSSIAN, x, sigma, middle, {}), middle, following, {})
    torch.testing.assert_close(one, two)


def test_the_last_progressive_target_is_the_image_itself() -> None:
    x, sigma = HIGH * _normal(5), torch.full((6,), HIGH, dtype=torch.float64)
    middle, nothing = torch.ones_like(sigma), torch.zeros_like(sigma)
    expected = ddim_step(GAUSSIAN, ddim_step(GAUSSIAN, x, sigma, middle, {}), middle, nothing, {})
    torch.testing.assert_close(two_steps_target(GAUSSIAN, x, sigma, middle, nothing, {}), expected)


def test_half_as_many_steps_are_every_second_sigma() -> None:
    torch.testing.assert_close(halvable_sigmas(16, LOW, HIGH)[::2], halvable_sigmas(8, LOW, HIGH))


class _Straight(nn.Module):
    """A denoiser that knows the image: its flow is straight."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.images,)


def test_the_reflow_loss_of_a_straight_flow_is_zero() -> None:
    noise, images, s = _normal(6), _normal(7), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    straight = Denoiser(_Straight(images), SCHEDULE, Prediction.SAMPLE)
    assert float(reflow_loss(straight, noise, images, s, {})) < 1e-20
    assert float(reflow_loss(straight, noise + 1, images + 1, s, {})) > 0.1
    x_s = 0.3 * noise + 0.7 * images
    torch.testing.assert_close(velocity(straight, x_s, torch.full((6,), 0.3, dtype=torch.float64), {}), images - noise)


def test_the_teachers_own_flow_is_the_probability_flow_in_other_coordinates() -> None:
    """Many Euler steps along the velocity arrive where the ODE does: the reflow starts from a 1-rectified flow."""
    noise = _normal(8)
    s = torch.linspace(HIGH / (1 + HIGH), 1e-4, 4001, dtype=torch.float64)
    x = float(s[0]) * noise
    for here, there in pairwise(s):
        x = x + (here - there) * velocity(GAUSSIAN, x, here.expand(6), {})
    expected = _solution(HIGH * noise, torch.full((6,), HIGH, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(x, expected, rtol=0.02, atol=0.01)


def test_euler_arrives_where_heun_does() -> None:
    noise = _normal(9)
    torch.testing.assert_close(
        euler(GAUSSIAN, 2000)(noise, {}), heun(GAUSSIAN, SCHEDULE, noise, {}, 200), rtol=5e-3, atol=1e-3
    )
    torch.testing.assert_close(euler(GAUSSIAN, 1)(noise, {}), one_step(GAUSSIAN)(noise, {}))


def test_pairs_are_the_solutions_of_their_noise_and_more_money_buys_more_of_the_same() -> None:
    teacher, each = digits().teacher, pair_cost(18)
    few, more = (make_pairs(teacher, money, seed=7, classes=10, steps=18) for money in (3 * each, 5 * each + 1))
    assert (len(few), len(more), few.cost) == (3, 5, 3 * each)
    noise, images, condition = more.at(torch.tensor([0, 2]))
    torch.testing.assert_close(images, few.images[[0, 2]])
    solved = heun(teacher.denoiser, teacher.denoiser.schedule, noise, condition, 18)
    torch.testing.assert_close(images, solved, rtol=1e-3, atol=1e-3)
    assert not torch.equal(make_pairs(teacher, each, seed=8, classes=10, steps=18).noise, few.noise[:1])


def test_training_goes_down_and_returns_the_average() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    start = Denoiser(network, SCHEDULE, Prediction.SAMPLE)
    inputs = torch.randn(64, 3)
    before = copy.deepcopy(network.state_dict())

    def loss(student: Denoiser) -> Tensor:
        return (student.network(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    trained = train(start, loss, updates=200, learning_rate=0.1)
    assert float(loss(trained).detach()) < 1e-3 < float(loss(start).detach())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_follow_is_the_moving_average() -> None:
    average, network = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * network.weight.detach()
    follow(average, network, 0.9)
    torch.testing.assert_close(average.weight.detach(), expected)


@pytest.fixture
def counted() -> Iterator[tuple[Teacher, list[float]]]:
    """The teacher, and how many network evaluations it and all copies of it made."""
    teacher = digits().teacher
    spent = [0.0]

    def count(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        trained = torch.is_grad_enabled() and next(network.parameters()).requires_grad
        spent[0] += len(inputs[0]) * (UPDATE if trained else FORWARD)

    # Copies of a network keep its hooks.
    handle = teacher.denoiser.network.register_forward_pre_hook(count)
    yield teacher, spent
    handle.remove()


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, methods in METHODS.items() for name in methods])
def test_methods_spend_their_budget_and_not_more(
    task: str, name: str, counted: tuple[Teacher, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (teacher, spent), budget = counted, 1000
    first_regression.cache_clear()
    # Made in chunks and kept, so that their making is not counted but charged.
    make_pairs(teacher, budget, seed=7, classes=10, steps=18)
    spent[0] = 0
    pairs_of, paid = Setting.pairs, [0]

    def charged(setting: Setting, share: float) -> TeacherPairs:
        pairs = pairs_of(setting, share)
        spent[0] += max(0, pairs.cost - max(paid))  # a regression that comes first has the same ones
        paid.append(pairs.cost)
        return pairs

    monkeypatch.setattr(Setting, "pairs", charged)
    classify = FakeScore.forward

    def to_the_head(fake: FakeScore, sample: Tensor, **arguments: Any) -> tuple[Tensor]:
        before = spent[0]
        found = classify(fake, sample, **arguments)
        if not arguments.get("denoise", True):
            spent[0] = before + len(sample) * UPDATE * TO_THE_HEAD
        return found

    monkeypatch.setattr(FakeScore, "forward", to_the_head)
    sampler = METHODS[task][name].distil(Setting(replace(digits(), batch=4), budget, seed=7), 1e-4)
    assert 0.9 * budget < spent[0] <= budget
    noise = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    assert sampler(noise, {"class_labels": torch.tensor([1, 2])}).isfinite().all()


LATENTS = schedule_from_scheduler({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"})


def test_ddims_levels_are_evenly_spread_and_half_as_many_steps_every_second_one() -> None:
    levels = ddim_levels(LATENTS, 4)
    torch.testing.assert_close(levels.sigma[:-1], LATENTS.sigmas[torch.tensor([999, 749, 499, 249])])
    assert (float(levels.alpha[-1]), float(levels.sigma[-1])) == (1.0, 0.0)
    torch.testing.assert_close(ddim_levels(LATENTS, 16).alpha[::2], ddim_levels(LATENTS, 8).alpha)


def test_one_ddim_step_to_the_latent_progressive_target_is_the_teachers_two() -> None:
    x, levels = _normal(10), ddim_levels(LATENTS, 8)
    for start in (0, 6):  # the last target is the image itself
        first, middle, last = (level_at(levels, torch.full((6,), start + further)) for further in range(3))

        def teacher(x_t: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
            return 0.3 * x_t + per_sample(level.sigma, x_t)

        target = emoji_methods.two_steps_target(teacher, x, first, middle, last, {})
        halfway = latent_ddim_step(x, teacher(x, first, {}), first, middle)
        expected = latent_ddim_step(halfway, teacher(halfway, middle, {}), middle, last)
        torch.testing.assert_close(latent_ddim_step(x, target, first, last), expected)


@pytest.fixture(scope="module")
def latents() -> EmojiSetting:
    return emoji_setting(budget=6_000, seed=7)


@pytest.mark.parametrize("name", ["Regression alone", "Progressive distillation", "Rectified flow (2-reflow)"])
def test_methods_on_latents_spend_their_budget(name: str, latents: EmojiSetting) -> None:
    setting, spent = latents, [0]

    def count(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        trained = torch.is_grad_enabled() and next(network.parameters()).requires_grad
        spent[0] += len(inputs[0]) * (UPDATE if trained else FORWARD)

    handle = setting.teacher.denoiser.network.register_forward_pre_hook(count)
    method, rate = emoji_methods.METHODS[name]
    sampler = method(setting, rate)
    handle.remove()
    assert 0.9 * setting.budget < spent[0] <= setting.budget
    condition = setting.conditions.embed({"prompt": torch.tensor([0, 5])}, torch.device("cpu"))
    assert sampler(torch.randn(2, *setting.teacher.sample_shape), condition).isfinite().all()


def test_plot(tmp_path: Path) -> None:
    one = [{"evaluations": 1, "fid": 0.5, "fids": [0.4, 0.6]}]
    lines = [{"evaluations": n, "fid": 4 / n, "fids": [4 / n]} for n in (1, 2, 4)]
    plot({"a method": one, "the teacher": lines}, "digits", tmp_path)
    assert (tmp_path / "one-step.png").stat().st_size > 1000


def test_a_finished_run_is_not_made_again_and_another_one_is(tmp_path: Path) -> None:
    runs, made = Runs(tmp_path / "runs.jsonl"), []
    run = Run("digits", "0123", "DMD", {"share": 0.2, "noise": (1, 2)}, 1e-3, 600, seed=0, samples=10)

    def make() -> dict[str, Any]:
        made.append(None)
        return {"fid": float(len(made))}

    assert [runs.get(run, make)["fid"] for _ in range(2)] == [1.0, 1.0]
    for change in ({"seed": 1}, {"settings": {"share": 0.3}}, {"learning_rate": 1e-4}, {"teacher": "4567"}):
        runs.get(replace(run, **change), make)
    assert len(made) == 5
    assert Runs(tmp_path / "runs.jsonl").get(run, make) == {"fid": 1.0}
