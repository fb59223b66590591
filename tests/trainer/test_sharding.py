"""How networks lie in memory changes nothing of what a step computes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmd_api.loading import parse_manifest
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.conditions.labels import ClassLabels
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.teacher import Teacher, load_teacher
from tests.conftest import MANIFEST
from tests.trainer.gradients import DoubleConditions
from tests.trainer.test_text_to_image import conditions_of, noise_of
from tests.trainer.text_teachers import MAKERS, make_sd


class Images:
    """Real images, as a GAN term reads them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return len(self.images)

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.images[indices], {}

    def prefetch(self, indices: torch.Tensor) -> None:
        """Everything is in memory."""


def reported(teacher: Teacher, conditions: Conditions, **training: Any) -> list[dict[str, float]]:
    """Losses and gradient norms of three steps of DMD2 with its GAN term."""
    content = json.loads(json.dumps(MANIFEST))
    spec = content["spec"]
    spec["data"]["images"] = {"uri": "builtin://emoji"}
    spec["method"] = {"name": "DMD2", "gan": {}, "fakeScoreUpdates": 2}
    spec["training"] |= {"batchSize": 4, "learningRate": 1e-3, **training}
    made = Distillation(
        teacher,
        parse_manifest(content).spec,
        TrainingData(conditions, real_images=Images(teacher.sample_shape)),
        l2_regression_loss,
    )
    reports = [made.step() for _ in range(3)]
    return [{**report.losses, **report.gradient_norms} for report in reports]


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return doubled(load_teacher(make_sd(tmp_path_factory.mktemp("teacher") / "sd")))


def doubled(teacher: Teacher) -> Teacher:
    """In float64, so that what differs is not rounding: the first step's scores are equal, and normalised."""
    return replace(teacher, denoiser=teacher.denoiser.with_network(teacher.denoiser.network.double()))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("field", ["activationCheckpointing", "channelsLast", "microBatchSize", "compile"])
@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_a_step_computes_the_same(
    tiny_teacher: Path,
    text_teacher: Teacher,
    tmp_path: Path,
    kind: str,
    field: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = text_teacher if kind == "text" else doubled(load_teacher(tiny_teacher))
    conditions: Conditions = ClassLabels(10)
    if kind == "text":
        conditions = DoubleConditions(embeddings=conditions_of(teacher, tmp_path).embeddings)
    compiled: list[nn.Module] = []
    own = nn.Module.compile

    def compile_here(module: nn.Module) -> None:
        """Traces as on a GPU, but generates no code: that would need a compiler on the machine."""
        compiled.append(module)
        own(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_here)
    expected = reported(teacher, conditions)
    assert not compiled
    found = reported(teacher, conditions, **{field: 1 if field == "microBatchSize" else True})
    assert bool(compiled) == (field == "compile")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("family", ["sd", "edm"])
def test_an_offloaded_teacher_is_the_same(tmp_path: Path, tiny_teacher: Path, family: str, weights: str) -> None:
    """Its layers come and go by the same hooks as on a GPU, from the host's memory to the host's memory."""
    folder = make_sd(tmp_path / "sd") if family == "sd" else tiny_teacher
    here, offloaded = (load_teacher(folder, weights=weights, offload=offload) for offload in (False, True))
    conditions = conditions_of(here, tmp_path) if family == "sd" else here.conditions(10)
    condition = conditions.embed(conditions.in_turn(2), torch.device("cpu"))
    level = here.denoiser.schedule.at(torch.tensor([len(here.denoiser.schedule) // 2] * 2))
    noise = noise_of(here)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(*(t.denoiser(noise, level, condition) for t in (here, offloaded)))
    for one, other in zip(*(t.trainable_network().parameters() for t in (here, offloaded)), strict=True):
        assert torch.equal(one, other)
        assert other.dtype == torch.float32
    assert reported(offloaded, conditions) == reported(here, conditions)


@pytest.mark.parametrize(("weights", "tolerance"), [("bf16", 0.03), ("fp8", 0.15)])
@pytest.mark.parametrize("family", list(MAKERS))
def test_a_narrow_teacher_predicts_nearly_the_same(tmp_path: Path, family: str, weights: str, tolerance: float) -> None:
    folder = MAKERS[family](tmp_path / family)
    whole, narrow = load_teacher(folder), load_teacher(folder, weights=weights)
    # Patch embeddings and normalisations stay as wide as the computation.
    kept = {p.dtype for name, p in narrow.denoiser.network.named_parameters() if "to_q.weight" in name}
    assert kept == {torch.bfloat16 if weights == "bf16" else torch.float8_e4m3fn}
    assert {p.dtype for p in narrow.trainable_network().parameters()} == {torch.float32}, "what is trained is whole"
    condition = conditions_of(whole, tmp_path).embed({"prompt": torch.tensor([0, 1])}, torch.device("cpu"))
    noise = noise_of(whole)
    level = whole.denoiser.schedule.at(torch.tensor([len(whole.denoiser.schedule) // 2] * 2))
    with torch.no_grad():
        (expected,), (found,) = (t.denoiser.call_network(noise, level, condition) for t in (whole, narrow))
    assert (found.float() - expected).norm() < tolerance * expected.norm()
    assert not torch.equal(found.float(), expected)
