"""Every family with every scheduler configuration, held against the pipeline itself on the same noise."""

import copy
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import diffusers
import pytest
import torch
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.default_solver import fitting_solvers
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.schedules import add_noise, karras_sigmas, per_sample
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.publishing.export import call_arguments, check_exportable, export_pipeline
from dmd_trainer.publishing.model_card import CardFacts
from tests.trainer.conformance.configurations import REFUSED, Configuration, each_once, name_of, product
from tests.trainer.conformance.teachers import (
    PROMPTS,
    close,
    condition_of,
    noise_for,
    own_pipeline,
    perturbed,
    teacher_folder,
    text_parts,
)

FACTS = CardFacts("run", "file:///teacher", "DMD", "abc", "1.0")
STEPS = 5
GUIDANCE = 3.0
CHOSEN = product() if os.environ.get("DMD_CONFORMANCE") else each_once()

# diffusers' own, about every second configuration.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array:DeprecationWarning")


class Pair(NamedTuple):
    """A family's teacher with a scheduler configuration, and its own pipeline."""

    family: str
    teacher: Teacher
    pipeline: Any

    @property
    def condition(self) -> Condition:
        return condition_of(self.family, self.teacher)[0]


@pytest.fixture(scope="module", params=CHOSEN, ids=[f"{family}-{name_of(found)}" for family, found in CHOSEN])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, configuration = request.param
    teacher = load_teacher(teacher_folder(family, tmp_path_factory.mktemp("teacher") / "teacher", configuration))
    parts = text_parts(family) if teacher.takes_text else {}
    return Pair(family, teacher, own_pipeline(teacher.directory, **parts))


@torch.no_grad()
def test_one_prediction_is_the_schedulers(pair: Pair) -> None:
    """What the network is given, at which time, and what is made of its answer."""
    teacher, scheduler = pair.teacher, pair.pipeline.scheduler
    schedule = teacher.denoiser.schedule
    x0, noise = noise_for(teacher.sample_shape, 1), noise_for(teacher.sample_shape, 2)
    for index in (0, len(schedule) // 3, len(schedule) - 1):
        level = schedule.at(torch.full((2,), index))
        x_t = add_noise(x0, noise, level)
        given, time, finish = oracle(scheduler, x0, noise, index, float(schedule.sigmas[index]))
        close(per_sample(teacher.denoiser.scalings(level).into, x_t) * x_t, given)
        close(level.time.float(), torch.full((2,), time))
        arguments: dict[str, Any] = dict(pair.condition)
        if "text_embeds" in arguments:
            arguments["added_cond_kwargs"] = {key: arguments.pop(key) for key in ("text_embeds", "time_ids")}
        (output,) = teacher.denoiser.network(given, timestep=torch.full((2,), time), **arguments, return_dict=False)
        close(teacher.denoiser(x_t, level, pair.condition), finish(output, x_t))


def oracle(
    scheduler: Any, x0: Tensor, noise: Tensor, index: int, sigma: float
) -> tuple[Tensor, float, Callable[[Tensor, Tensor], Tensor]]:
    """What a scheduler gives the network at an index of its table, at which time, and its x0 of what that answers."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        table = diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        time = table.timesteps[len(table.timesteps) - 1 - index]
        level = time / table.config.num_train_timesteps
        return table.scale_noise(x0, time[None], noise), float(time), lambda output, x_t: x_t - level * output
    if name.startswith(("EDM", "CMStochastic")):
        edm = diffusers.EDMEulerScheduler(sigma_data=scheduler.config.sigma_data)
        exact = torch.tensor(sigma)
        time = float(edm.precondition_noise(exact))
        if name.startswith("CMStochastic"):
            time = float(scheduler.sigma_to_t(exact.numpy()))
        given = edm.precondition_inputs(x0 + exact * noise, exact)
        return given, time, lambda output, x_t: edm.precondition_outputs(x_t, output, exact)
    # All variance-preserving classes mean the same by a network's answer, and only DDIM says x0 in so many words.
    ddim = diffusers.DDIMScheduler(
        trained_betas=scheduler.betas.tolist(),
        num_train_timesteps=len(scheduler.betas),
        prediction_type=scheduler.config.prediction_type,
        clip_sample=False,
    )
    ddim.alphas_cumprod = scheduler.alphas_cumprod  # some classes keep some signal at a terminal SNR of zero
    ddim.set_timesteps(len(scheduler.betas))
    given = ddim.add_noise(x0, noise, torch.tensor([index]))
    return given, float(index), lambda output, x_t: ddim.step(output, index, x_t).pred_original_sample


def test_every_solver_takes_the_pipelines_steps(pair: Pair) -> None:
    """Latents or pixels after all steps, with guidance; a solver is refused where the pipeline cannot use it."""
    teacher = pair.teacher
    condition, negative = condition_of(pair.family, teacher)
    noise = noise_for(teacher.sample_shape)
    for name in fitting_solvers(teacher.denoiser.prediction):
        expected = plain_heun(pair, noise) if name == "Heun" else pipeline_result(pair, name, noise)
        make = partial(teacher_solver, teacher.denoiser, name, STEPS, GUIDANCE if negative else 1.0, negative)
        if expected is None:
            with pytest.raises(BadInputError, match=name):
                make()
            continue
        solver = make()
        found = solver(noise, condition)
        assert torch.equal(found, solver(noise, condition))  # a function of noise and condition
        close(found, expected)


@torch.no_grad()
def test_the_exported_generator_draws_the_trainers_images(pair: Pair, tmp_path: Path) -> None:
    teacher, noise = pair.teacher, noise_for(pair.teacher.sample_shape)
    timesteps = generator_timesteps(Method(), teacher.denoiser.schedule)
    check_exportable(teacher, Method())
    weights = perturbed(teacher)
    network = load_teacher(teacher.directory).denoiser.network
    network.load_state_dict(weights)
    expected = Generator(teacher.denoiser.with_network(network), timesteps)(noise, pair.condition)
    export_pipeline(teacher, weights, timesteps, tmp_path / "pipeline", FACTS)
    pipeline = own_pipeline(tmp_path / "pipeline", **(text_parts(pair.family) if teacher.takes_text else {}))
    arguments = call_arguments(type(pipeline).__name__)
    if teacher.takes_text:
        size = {"height": 16, "width": 16}
        close(pipeline(PROMPTS, latents=noise.clone(), output_type="latent", **size, **arguments).images, expected)
        return
    if teacher.num_class_embeds is not None:
        arguments["class_labels"] = [3, 7]
    with patch(f"{type(pipeline).__module__}.randn_tensor", lambda *_, **__: noise.clone()):
        images = torch.from_numpy(pipeline(batch_size=2, output_type="np", **arguments).images).permute(0, 3, 1, 2)
    close(images * 2 - 1, expected.clamp(-1, 1))


@torch.no_grad()
def pipeline_result(pair: Pair, name: str, noise: Tensor) -> Tensor | None:
    """The pipeline's own, its scheduler exchanged as diffusers' documentation does; None where it raises."""
    teacher, pipeline = pair.teacher, copy.copy(pair.pipeline)
    own = pair.pipeline.scheduler
    ode = {"algorithm_type": str(own.config.get("algorithm_type")).removeprefix("sde-")}
    options: dict[str, dict[str, Any]] = {
        "DDIM": {"clip_sample": False} if teacher.takes_text else {},
        "PNDM": {},
        "DPMSolverMultistep": ode if "algorithm_type" in own.config else {},
        "FlowMatchEuler": {"stochastic_sampling": False},
    }
    names = {"FlowMatchEuler": "FlowMatchEulerDiscreteScheduler"}
    try:
        solver_class = getattr(diffusers, names.get(name, f"{name}Scheduler"))
        pipeline.scheduler = solver_class.from_config(own.config, **options[name])
        if hasattr(own, "alphas_cumprod") and not torch.allclose(
            pipeline.scheduler.alphas_cumprod, own.alphas_cumprod, rtol=0, atol=1e-6
        ):
            return None  # it runs, and solves another equation than the teacher's
        if teacher.takes_text:
            return pipeline(
                PROMPTS,
                latents=noise.clone(),
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                height=16,
                width=16,
                output_type="latent",
            ).images
        scheduler, x = pipeline.scheduler, noise
        scheduler.set_timesteps(STEPS)
        for time in scheduler.timesteps:
            output = teacher.denoiser.network(x, time, **pair.condition).sample
            x = scheduler.step(output, time, x).prev_sample
        return x if x.isfinite().all() else None
    except (NotImplementedError, ValueError):
        return None


def plain_heun(pair: Pair, noise: Tensor) -> Tensor:
    """diffusers has no Heun for EDM's schedules: the paper's, between the scheduler's own ends."""
    teacher, config = pair.teacher, pair.pipeline.scheduler.config
    edm = diffusers.EDMEulerScheduler(sigma_data=config.sigma_data)
    sigmas = [*karras_sigmas(STEPS, config.sigma_min, config.sigma_max, config.rho).float(), torch.tensor(0.0)]
    schedule = teacher.denoiser.schedule

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        time = (schedule.time_scale * sigma.log()).expand(2)
        output = teacher.denoiser.network(edm.precondition_inputs(x, sigma), time, **pair.condition).sample
        return (x - edm.precondition_outputs(x, output, sigma)) / sigma

    x = noise * sigmas[0]
    with torch.no_grad():
        for now, then in pairwise(sigmas):
            first = slope(x, now)
            moved = x + (then - now) * first
            x = moved if then == 0 else x + (then - now) * (first + slope(moved, then)) / 2
    return x


@pytest.mark.parametrize("configuration", REFUSED, ids=name_of)
def test_what_is_not_understood_is_refused_by_name(configuration: Configuration, tmp_path: Path) -> None:
    name, fields = configuration
    family = "sd3" if name.startswith("FlowMatch") else "edm" if name.startswith("EDM") else "ddpm"
    field, value = next(iter(fields.items()))
    named = name if name in {"ScoreSdeVe", "DDIMInverse"} else f"{field}|{value}"
    with pytest.raises(BadInputError, match=named):
        load_teacher(teacher_folder(family, tmp_path / "teacher", configuration))


@pytest.mark.parametrize(
    ("family", "configuration"),
    [
        ("sdxl", ("EDMDPMSolverMultistep", {})),
        ("sd", ("EDMEuler", {})),
        ("sd", ("FlowMatchEulerDiscrete", {})),
        ("sd3", ("DDIM", {"clip_sample": False})),
        ("ddpm", ("FlowMatchEulerDiscrete", {})),
        ("sdxl", ("DDIM", {"clip_sample": True})),
        ("sd", ("DPMSolverMultistep", {"thresholding": True})),
    ],
)
def test_a_schedule_that_a_familys_pipelines_do_not_take_is_refused(
    family: str, configuration: Configuration, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=r"scheduler_config\.json"):
        load_teacher(teacher_folder(family, tmp_path / "teacher", configuration))


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "PNDM", "DDIM"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_latents_are_never_clipped(family: str, name: str, tmp_path: Path) -> None:
    """DDIM's own default is to clip: a file of another class that does not say so is not to be read so."""
    fields = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if (family, name) == ("sdxl", "DDIM"):
        fields["clip_sample"] = False  # where only the pipeline of 1.x corrects it
    teacher = load_teacher(teacher_folder(family, tmp_path / "teacher", (name, fields)))
    condition, _ = condition_of(family, teacher)
    assert teacher_solver(teacher.denoiser, "DDIM", STEPS)(noise_for(teacher.sample_shape), condition).abs().max() > 1.5
