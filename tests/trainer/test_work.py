"""A plan's network evaluations are those that forward hooks count in the real step and the real solvers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage
from dmd_trainer.diffusion.default_solver import (
    SolverSteps,
    default_solver,
    evaluations,
    fitting_solvers,
    teacher_sampling,
)
from dmd_trainer.diffusion.prediction import Prediction, prediction_of
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.architecture import read_architecture
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.planning.work import count_step, count_work
from tests.conftest import MANIFEST
from tests.trainer.text_teachers import MAKERS

FAMILIES = ("ddpm", "edm", *MAKERS)
PAIRS = {"name": "DMD", "regression": {"pairs": 4}}
METHODS: dict[str, dict[str, Any]] = {
    "DMD": PAIRS,
    "DMD, k = 3": {**PAIRS, "fakeScoreUpdates": 3},
    "regression alone": {**PAIRS, "fakeScoreUpdates": 0},
    "DMD2": {"name": "DMD2", "fakeScoreUpdates": 1},
    "DMD2, k = 3": {"name": "DMD2", "fakeScoreUpdates": 3},
    "DMD2, GAN": {"name": "DMD2", "gan": {}, "fakeScoreUpdates": 2},
    "DMD2, GAN, Jeffreys": {"name": "DMD2", "gan": {}, "divergence": "Jeffreys", "fakeScoreUpdates": 1},
    "DMD2, guidance's own noise": {
        "name": "DMD2",
        "guidanceNoise": {"minTimestep": 500, "maxTimestep": 900},
        "fakeScoreUpdates": 1,
    },
    "DMD2, GAN, bounded noise": {"name": "DMD2", "gan": {"maxTimestep": 400}, "fakeScoreUpdates": 2},
    "DMD2, two steps": {"name": "DMD2", "generatorSteps": 2, "fakeScoreUpdates": 2},
    "DMD2, two steps, GAN": {"name": "DMD2", "generatorSteps": 2, "gan": {}, "fakeScoreUpdates": 2},
}
STEPS, BATCH = 2, 4
SEED = 32
"""Draws the first of the generator's two steps as often as the second, as a count on average has it, and the second for
one sample of each micro-batch at least: where there is none, one is called for nothing."""


class Evaluations:
    """Counts the samples that pass networks: with gradients or without, and those that are classified apart."""

    def __init__(self, *networks: nn.Module) -> None:
        self.forward = self.backward = self.classified = self.classified_backward = 0
        for network in networks:
            network.register_forward_hook(self._count)

    def _count(self, network: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor]) -> None:
        names = ("classified", "classified_backward") if output[0].ndim == 1 else ("forward", "backward")
        name = names[output[0].requires_grad]
        setattr(self, name, getattr(self, name) + len(inputs[0]))


class Zeros:
    """Conditions, pairs and real images of zeros, in the shapes that a teacher takes."""

    def __init__(self, teacher: Teacher) -> None:
        self.shape, self.architecture = teacher.sample_shape, read_architecture(teacher.directory)

    def __len__(self) -> int:
        return 4

    @property
    def negative(self) -> dict[str, Tensor]:
        return self.embed({"rows": torch.zeros(1)})

    def draw(self, random: KeyedRandom) -> dict[str, Tensor]:
        return {"rows": random.integers(0, 1)}

    def embed(self, drawn: dict[str, Tensor], device: object = None) -> dict[str, Tensor]:
        return self.architecture.conditions(len(drawn["rows"]))

    def prefetch(self, indices: Tensor) -> None:
        """Everything is in memory."""


class Pairs(Zeros):
    def at(self, indices: Tensor) -> Any:
        images = torch.zeros(len(indices), *self.shape)
        return images, images, {"rows": indices}


class RealImages(Zeros):
    def at(self, indices: Tensor) -> Any:
        return torch.zeros(len(indices), *self.shape), {}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_ddpm: Path, tiny_teacher: Path
) -> Path:
    if request.param in MAKERS:
        return MAKERS[request.param](tmp_path_factory.mktemp("teachers") / request.param)
    return {"ddpm": tiny_ddpm, "edm": tiny_teacher}[request.param]


def manifest_of(method: dict[str, Any], teacher: Teacher, guidance: float = 1) -> DMDDistillation:
    content = copy.deepcopy(MANIFEST)
    spec = content["spec"]
    spec["teacher"] = {"uri": teacher.directory.as_uri(), "guidanceScale": guidance}
    spec["data"] |= {"images": {"uri": "builtin://digits"}} if "gan" in method else {}
    spec["method"] = method
    spec["training"] |= {
        "batchSize": BATCH,
        "microBatchSize": 2,
        "generatorUpdates": STEPS,
        "seed": SEED,
        "maxLoss": 1e15,
    }
    return parse_manifest(content)


@pytest.mark.parametrize(("method", "guidance"), [*((method, 3) for method in METHODS), ("DMD", 1), ("DMD2, GAN", 1)])
def test_a_step_evaluates_its_networks_as_often_as_planned(folder: Path, method: str, guidance: float) -> None:
    teacher = load_teacher(folder)
    if "gan" in METHODS[method] and (folder / "transformer").exists():
        pytest.skip("the GAN term needs a U-Net's bottleneck")
    manifest = manifest_of(METHODS[method], teacher, guidance)
    pairs = Pairs(teacher) if "regression" in METHODS[method] else None
    data = TrainingData(Zeros(teacher), pairs, RealImages(teacher))  # type: ignore[arg-type]
    distillation = Distillation(teacher, manifest.spec, data, l2_regression_loss)
    trained = [distillation.generator_network, distillation.fake_score_network]
    counted = Evaluations(teacher.denoiser.network, *(network.module for network in trained if network is not None))
    for _ in range(STEPS):
        distillation.step()
    step = count_step(manifest.spec)
    found = (counted.forward, counted.backward, counted.classified, counted.classified_backward)
    assert found == tuple(STEPS * BATCH * count for count in step)


def test_solvers_evaluate_the_teacher_as_often_as_planned(folder: Path) -> None:
    teacher = load_teacher(folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    prediction = teacher.denoiser.prediction
    assert prediction_of(scheduler) == prediction
    zeros = Zeros(teacher)
    drawn = {"rows": torch.zeros(2)}
    counted = Evaluations(teacher.denoiser.network)
    for sampling in [default_solver(prediction), *(SolverSteps(name, 6) for name in fitting_solvers(prediction))]:
        counted.forward = 0
        teacher_solver(teacher.denoiser, *sampling)(torch.randn(2, *teacher.sample_shape), zeros.embed(drawn))
        assert counted.forward == 2 * evaluations(sampling, scheduler), sampling


def test_evaluation_and_plan_take_one_default_and_the_pairs_own_solver_where_there_are_pairs(folder: Path) -> None:
    teacher = load_teacher(folder)
    scheduler = read_architecture(folder).scheduler
    edm = teacher.denoiser.prediction == Prediction.EDM
    manifest = manifest_of(METHODS["DMD2"], teacher, guidance=3)
    calls = 35 if edm else 50
    assert evaluations(teacher_sampling(manifest.spec.method, teacher.denoiser.prediction), scheduler) == calls
    samples = manifest.spec.evaluation.samples
    assert count_work(manifest, scheduler).forward[Stage.EVALUATE] == samples * (2 * calls + 2)

    method = {"name": "DMD", "regression": {"pairs": 4, "solver": "Heun", "solverSteps": 7}}
    with_pairs = manifest_of(method, teacher)
    assert count_work(with_pairs, scheduler).forward[Stage.PREPARE] == 4 * 13
    assert count_work(with_pairs, scheduler).forward[Stage.EVALUATE] == samples * (13 + 2)
