"""Preconditionings and schedules, held against diffusers' own."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_trainer.diffusion.denoiser import Denoiser, Guided, scalings
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, karras_sigmas, middle_indices, per_sample
from dmd_trainer.diffusion.schedules import schedule_from_scheduler as schedule_of

SCHEDULERS = {
    "linear": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "scaled_linear": {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
}


class Constant(nn.Module):
    """A network whose output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True, **condition: Tensor) -> tuple[Tensor]:
        return (self.output,)


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def what_it_should_say(prediction: Prediction, x0: Tensor, eps: Tensor, level: NoiseLevel, sigma_data: float) -> Tensor:
    """The output of a perfect network, from each parametrisation's own definition."""
    alpha, sigma = per_sample(level.alpha, x0), per_sample(level.sigma, x0)
    x_t = alpha * x0 + sigma * eps
    match prediction:
        case Prediction.EPSILON:
            return eps
        case Prediction.V:
            return alpha * eps - sigma * x0
        case Prediction.SAMPLE:
            return x0
        case Prediction.FLOW:
            return eps - x0
        case Prediction.EDM:
            root = (sigma**2 + sigma_data**2).sqrt()
            return (x0 - sigma_data**2 / root**2 * x_t) * root / (sigma * sigma_data)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_prediction_round_trips_to_x0(prediction: Prediction) -> None:
    x0, eps = batch(6, 3, 4, 4), batch(6, 3, 4, 4, seed=1)
    config = {"_class_name": "CMStochasticIterativeScheduler", "sigma_data": 0.7}
    if prediction == Prediction.FLOW:
        config = dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config, _class_name="FlowMatchEulerDiscreteScheduler")
    elif prediction != Prediction.EDM:
        config = SCHEDULERS["linear"]
    schedule = schedule_of(config)
    level = schedule.at(torch.tensor([0, 10, 300, 500, 800, 999]))
    output = what_it_should_say(prediction, x0, eps, level, 0.7)
    found = Denoiser(Constant(output), schedule, prediction)(add_noise(x0, eps, level), level, {})
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noising_and_velocity_agree_with_diffusers(name: str) -> None:
    config = SCHEDULERS[name]
    scheduler = DDPMScheduler(**{k: v for k, v in config.items() if k != "_class_name"})
    x0, eps = batch(5, 1, 4, 4).float(), batch(5, 1, 4, 4, seed=1).float()
    index = torch.tensor([0, 1, 250, 500, 999])
    level = schedule_of(config).at(index)
    torch.testing.assert_close(add_noise(x0, eps, level), scheduler.add_noise(x0, eps, index), rtol=1e-5, atol=1e-5)
    velocity = per_sample(level.alpha, x0) * eps - per_sample(level.sigma, x0) * x0
    torch.testing.assert_close(velocity, scheduler.get_velocity(x0, eps, index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V, Prediction.SAMPLE])
def test_one_ddim_step_agrees_with_diffusers(prediction: Prediction) -> None:
    scheduler = DDIMScheduler(prediction_type=str(prediction), clip_sample=False)
    scheduler.set_timesteps(10)
    schedule = schedule_of(SCHEDULERS["linear"])
    x_t, output = batch(2, 1, 4, 4), batch(2, 1, 4, 4, seed=1)
    level, earlier = schedule.at(torch.tensor([500, 500])), schedule.at(torch.tensor([400, 400]))
    x0 = Denoiser(Constant(output), schedule, prediction)(x_t, level, {})
    eps = (x_t - per_sample(level.alpha, x_t) * x0) / per_sample(level.sigma, x_t)
    expected = scheduler.step(output, 500, x_t).prev_sample
    torch.testing.assert_close(add_noise(x0, eps, earlier), expected, rtol=1e-5, atol=1e-5)


def test_edm_agrees_with_diffusers_preconditioning() -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.6)
    schedule = schedule_of({"_class_name": "EDMEulerScheduler", "sigma_data": 0.6})
    x_t, output = batch(2, 1, 4, 4), batch(2, 1, 4, 4, seed=1)
    level = schedule.at_sigma(torch.tensor([0.3, 0.3]))
    sigma = torch.tensor(0.3, dtype=torch.float64)
    found = Denoiser(Constant(output), schedule, Prediction.EDM)(x_t, level, {})
    torch.testing.assert_close(found, scheduler.precondition_outputs(x_t, output, sigma), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(level.time[0], scheduler.precondition_noise(sigma), rtol=1e-6, atol=1e-6)


def test_a_consistency_schedulers_times_are_what_the_pipeline_tells_the_network() -> None:
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=1000, sigma_data=0.5)
    scheduler.set_timesteps(1000)
    schedule = schedule_of(dict(scheduler.config, _class_name="CMStochasticIterativeScheduler"))
    torch.testing.assert_close(schedule.times.flip(0), scheduler.timesteps, rtol=1e-6, atol=1e-4)


def test_flow_matching_schedule_agrees_with_diffusers_scale_noise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = schedule_of(dict(scheduler.config, _class_name="FlowMatchEulerDiscreteScheduler"))
    x0, eps = batch(2, 1, 4, 4), batch(2, 1, 4, 4, seed=1)
    time = scheduler.timesteps[[100, 600]]
    level = schedule.at(torch.tensor([999 - 100, 999 - 600]))
    torch.testing.assert_close(level.time.float(), time, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(
        add_noise(x0, eps, level).float(), scheduler.scale_noise(x0.float(), time, eps.float()), rtol=1e-5, atol=1e-5
    )


def test_karras_sigmas_are_those_of_the_paper() -> None:
    sigmas = karras_sigmas(18)
    step = 5
    expected = (80 ** (1 / 7) + step / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[0].item() == pytest.approx(80)
    assert sigmas[-1].item() == pytest.approx(0.002)
    assert sigmas[step].item() == pytest.approx(expected)


def test_the_middle_of_the_schedule_is_two_percent_in_from_each_end() -> None:
    assert middle_indices(1000) == (20, 980)


def test_an_unknown_scheduler_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="VQDiffusionScheduler"):
        schedule_of({"_class_name": "VQDiffusionScheduler"})


def test_guidance_is_the_same_in_x0_as_in_eps() -> None:
    schedule = schedule_of(SCHEDULERS["linear"])
    level = schedule.at(torch.tensor([700, 700]))
    x_t = batch(2, 1, 4, 4)
    eps_pair = batch(4, 1, 4, 4, seed=1)  # conditional, then unconditional
    guided = Guided(
        Denoiser(Constant(eps_pair), schedule, Prediction.EPSILON), 3.0, {"class_labels": torch.tensor([10])}
    )
    positive, negative = eps_pair.split(2)
    eps = negative + 3.0 * (positive - negative)
    expected = Denoiser(Constant(eps), schedule, Prediction.EPSILON)(x_t, level, {})
    torch.testing.assert_close(guided(x_t, level, {"class_labels": torch.tensor([1, 2])}), expected)


def test_scalings_stay_in_float64_at_the_noisiest_level() -> None:
    level = schedule_of(SCHEDULERS["linear"]).at(torch.tensor([999]))
    skip, out, _ = scalings(Prediction.EPSILON, level)
    assert skip.dtype == out.dtype == torch.float64
    assert 150 < out.abs().item() < 160  # how much DDPM's eps errors are multiplied by
