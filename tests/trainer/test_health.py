"""Health as a table, and on the digits teacher: known collapses raise alarms, healthy runs do not."""

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load
from torch import Tensor, nn

from dmd_api.errors import TrainingDivergedError
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import parse_manifest
from dmd_api.manifest import Spec
from dmd_api.runtime import Stage
from dmd_api.spec import NoiseRange
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.conditions.labels import ClassLabels
from dmd_trainer.data.pairs import Pairs, make_shard, shard_indices
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.solvers import Solver, heun, teacher_solver
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.health.probe import HealthProbe
from dmd_trainer.health.rules import LASTING, RULES, WELL_AFTER, WINDOW, Health
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.training.cadence import LOG_EVERY
from tests.stages import RUN_KEY, run_stage_here, tracked_status

EXAMPLES = Path(__file__).parents[2] / "examples"
START = {"fake_score_loss": 2.0, "teacher_loss": 2.0, "score_difference": 0.0, "diversity": 0.1, "contrast": 0.9}
GOOD = {
    "fake_score_loss": 1.1,
    "teacher_loss": 1.4,
    "score_difference": 0.3,
    "diversity": 0.9,
    "saturation": 0.0,
    "colour_drift": 0.0,
    "contrast": 1.0,
    "guidance_contrast": 1.3,
    "regression_error": 0.1,
    "discriminator_loss": 1.2,
    "generator_gradient_norm": 2.0,
    "fake_score_gradient_norm": 0.5,
}


def spec(change: Callable[[dict[str, Any]], None] = lambda spec: None, updates: int = 150) -> Spec:
    """The digits example's, changed."""
    content = yaml.safe_load((EXAMPLES / "distill-digits.yaml").read_text())
    content["spec"]["training"]["generatorUpdates"] = updates
    change(content["spec"])
    return parse_manifest(content).spec


def fed(health: Health, *changes: dict[str, float], first_step: int = 100) -> list[str]:
    """What is wrong after good measures with these changes."""
    for number, change in enumerate(changes):
        health.feed({"step": first_step + 10 * number, **GOOD, **change})
    return health.warnings


def started(**fields: Any) -> Health:
    health = Health(spec(**fields))
    health.feed({"step": 0, **START})
    fed(health, *[{}] * 30)
    return health


@pytest.mark.parametrize(
    ("measure", "value", "field"),
    [
        ("fake_score_loss", 3.5, "spec.method.fakeScoreUpdates"),
        ("score_difference", 1e-8, "spec.training.fakeScore.learningRate"),
        ("teacher_loss", 3.5, "spec.training.learningRate"),
        ("diversity", 0.3, "spec.method.regression.weight"),
        ("saturation", 0.3, "spec.training.learningRate"),
        ("colour_drift", 1.0, "spec.training.learningRate"),
        ("contrast", 0.3, "spec.training.learningRate"),
        ("guidance_contrast", 3.0, "spec.teacher.guidanceScale"),
        ("regression_error", 0.9, "spec.method.regression.weight"),
        ("generator_gradient_norm", 30.0, "spec.training.learningRate"),
        ("fake_score_gradient_norm", 30.0, "spec.training.learningRate"),
    ],
)
def test_each_measure_that_stays_bad_is_a_warning_that_names_it_and_a_field(
    measure: str, value: float, field: str
) -> None:
    health = started()
    assert fed(health, {measure: value}) == [], "one value is no trend"
    (warning,) = fed(health, {measure: value})
    assert f"({measure})" in warning
    assert field in warning
    assert len(warning) <= 1024


def test_the_table_is_whole() -> None:
    assert sorted(rule.measure for rule in RULES) == sorted(GOOD)


def test_fields_that_the_manifest_does_not_have_are_not_named() -> None:
    def gan(content: dict[str, Any]) -> None:
        content["method"] = {"name": "DMD2", "gan": {"generatorWeight": 1}}
        content["data"]["images"] = {"uri": "builtin://digits"}

    (warning,) = fed(started(change=gan), *[{"diversity": 0.1}] * 3)
    assert "lower spec.method.gan.generatorWeight" in warning
    assert "regression" not in warning
    assert fed(started(change=gan), *[{"regression_error": 9.0}] * 3) == [], "nothing is regressed"


def test_a_discriminator_at_chance_is_a_warning_and_no_collapse() -> None:
    def gan(content: dict[str, Any]) -> None:
        content["method"] = {"name": "DMD2", "gan": {}}
        content["data"]["images"] = {"uri": "builtin://digits"}

    chance = 2 * math.log(2)
    health = started(change=gan)
    (warning,) = fed(health, *[{"discriminator_loss": 1.005 * chance}] * 2 * LASTING)
    assert warning.endswith(
        "(discriminator_loss); raise spec.method.gan.guidanceWeight or spec.training.fakeScore.learningRate"
    )
    assert not health.endangered
    assert not health.collapsing
    for share in (0.95, 1.05):
        assert fed(started(change=gan), *[{"discriminator_loss": share * chance}] * WINDOW) == []
    assert fed(started(), *[{"discriminator_loss": chance}] * WINDOW) == [], "there is no head"


def test_regression_alone_is_not_judged_by_a_fake_score() -> None:
    def alone(content: dict[str, Any]) -> None:
        content["method"]["fakeScoreUpdates"] = 0

    health = started(change=alone)
    assert not fed(health, *[{"fake_score_loss": 9.0, "score_difference": 0.0}] * WINDOW)
    (warning,) = fed(health, *[{"contrast": 0.1}] * WINDOW)
    assert warning.endswith("(contrast); lower spec.training.learningRate")


def test_a_warning_lasts_until_its_measure_has_been_well_for_long() -> None:
    health = started()
    assert len(fed(health, *[{"saturation": 0.5}] * 3)) == 1
    # The last bad value leaves the window of the median after one good one.
    assert len(fed(health, *[{}] * WELL_AFTER)) == 1
    assert fed(health, {}) == []


def test_only_what_lasts_is_a_collapse() -> None:
    health = started()
    fed(health, *[{"teacher_loss": 9.0}] * LASTING)
    assert health.warnings
    assert not health.collapsing
    fed(health, {"teacher_loss": 9.0})
    assert health.collapsing


def test_what_a_generator_starts_with_and_its_warm_up_are_no_alarm() -> None:
    health = Health(spec())
    foreign = {"fake_score_loss": 5.0, "teacher_loss": 5.0, "contrast": 0.2, "diversity": 0.01}
    health.feed({"step": 0, **GOOD, **foreign})
    assert fed(health, *[foreign] * 10) == []
    assert fed(Health(spec()), *[{"score_difference": 0.0}] * 8, first_step=-60) == [], "warmupSteps is 20"


def test_a_resumed_run_that_is_fed_its_history_says_the_same() -> None:
    measures = [{"step": 10 * n, **GOOD, "saturation": 0.2 * (n % 5 > 2), "contrast": 1 - n / 50} for n in range(60)]
    whole, said = Health(spec()), []
    for measure in measures:
        whole.feed(measure)
        said.append((whole.warnings, whole.collapsing))
    resumed = Health(spec())
    for measure in measures[:40]:
        resumed.feed(measure)
    assert (resumed.warnings, resumed.collapsing) == said[39]
    resumed.feed(measures[40])
    assert (resumed.warnings, resumed.collapsing) == said[40]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.set_num_threads(1)
    return load_teacher(local_path("builtin://digits-teacher", Path()))


@pytest.fixture(scope="module")
def solver(teacher: Teacher) -> Solver:
    """The example's, which remembers what it has solved."""
    solved: dict[bytes, Tensor] = {}

    def solve(noise: Tensor, condition: Condition) -> Tensor:
        key = noise.numpy().tobytes()
        if key not in solved:
            solved[key] = heun(teacher.denoiser, teacher.denoiser.schedule, noise, condition, 18)
        return solved[key]

    return solve


@pytest.fixture(scope="module")
def probe(teacher: Teacher, solver: Solver) -> HealthProbe:
    return HealthProbe(teacher, solver, ClassLabels(10), seed=0)


class Given(Generator):
    """A generator that gives the teacher's own images, changed."""

    def __init__(self, teacher: Teacher, solver: Solver, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(teacher.denoiser, (0,))
        object.__setattr__(self, "give", lambda noise, condition: change(solver(noise, condition)))

    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        return self.give(noise, condition)  # type: ignore[attr-defined, no-any-return]


def test_a_generator_that_is_its_teacher_measures_as_one(teacher: Teacher, solver: Solver, probe: HealthProbe) -> None:
    found = probe.measure(Given(teacher, solver, lambda x: x), teacher.denoiser)
    one = {"fake_score_loss": 1, "teacher_loss": 1, "diversity": 1, "contrast": 1}
    none = {"score_difference": 0, "saturation": 0, "colour_drift": 0, "regression_error": 0}
    assert found == pytest.approx(one | none, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "measure", "expected"),
    [
        pytest.param(lambda x: x[:1].expand_as(x), "diversity", 0.0, id="copies"),
        pytest.param(lambda x: x[torch.arange(len(x)) ^ 1], "regression_error", 1.0, id="another of its condition"),
        pytest.param(lambda x: x / 2, "contrast", 0.5, id="half the contrast"),
        pytest.param(lambda x: torch.full_like(x, 3.0), "saturation", 1.0, id="beyond everything"),
    ],
)
def test_measures_are_what_they_say(
    teacher: Teacher,
    solver: Solver,
    probe: HealthProbe,
    change: Callable[[Tensor], Tensor],
    measure: str,
    expected: float,
) -> None:
    found = probe.measure(Given(teacher, solver, change), teacher.denoiser)
    assert found[measure] == pytest.approx(expected, abs=1e-5)


def test_scores_are_compared_where_distributions_are_matched(teacher: Teacher, solver: Solver) -> None:
    levels = NoiseRange(min_timestep=300, max_timestep=302)
    probe = HealthProbe(teacher, solver, ClassLabels(10), seed=0, matching=levels)
    mu_fake = teacher.denoiser.with_network(copy.deepcopy(teacher.denoiser.network))
    seen: set[float] = set()

    def note(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs["timestep"].tolist())

    mu_fake.network.register_forward_pre_hook(note, with_kwargs=True)
    probe.measure(Given(teacher, solver, lambda x: x), mu_fake)
    assert seen == set(teacher.denoiser.schedule.times[300:303].float().tolist())


def test_a_shifted_mean_is_a_drift_in_standard_deviations(teacher: Teacher, solver: Solver, probe: HealthProbe) -> None:
    images: list[Tensor] = []

    def shift(x: Tensor) -> Tensor:
        images.append(x)
        return x + 0.25

    drift = probe.measure(Given(teacher, solver, shift), teacher.denoiser)["colour_drift"]
    assert drift == pytest.approx(0.25 / float(torch.cat(images).std()), rel=1e-2)


DIGITS = ClassLabels(10)


class Digits:
    """The teacher's images, for a GAN term."""

    def __init__(self, files: list[Path]) -> None:
        shards = [load(file.read_bytes()) for file in files]
        self.images = torch.cat([shard["images"] for shard in shards])
        self.labels = torch.cat([shard["class_labels"] for shard in shards])

    def __len__(self) -> int:
        return len(self.images)

    def at(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[indices], {"class_labels": self.labels[indices]}

    def prefetch(self, indices: Tensor) -> None:
        """Everything is in memory."""


@pytest.fixture(scope="module")
def pair_files(teacher: Teacher, solver: Solver, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    file = tmp_path_factory.mktemp("pairs") / "shard.safetensors"
    shard = make_shard(solver, ClassLabels(10), teacher.sample_shape, shard_indices(0, 512), 0, torch.device("cpu"))
    file.write_bytes(shard)
    return [file]


def no_regression(content: dict[str, Any]) -> None:
    content["method"] = {"name": "DMD2", "fakeScoreUpdates": 1}
    content["training"] |= {"learningRate": 3e-3, "learningRateSchedule": "constant"}


def strong_gan(content: dict[str, Any]) -> None:
    content["method"] = {"name": "DMD2", "fakeScoreUpdates": 1, "gan": {"generatorWeight": 80, "guidanceWeight": 0.08}}
    content["data"]["images"] = {"uri": "builtin://digits"}


def idle_fake_score(content: dict[str, Any]) -> None:
    content["training"]["fakeScore"] = {"learningRate": 1e-12}


def slow_fake_score(content: dict[str, Any]) -> None:
    content["method"] = {"name": "DMD2", "fakeScoreUpdates": 1}
    content["training"]["fakeScore"] = {"learningRate": 1e-5}


def gentle_dmd2(content: dict[str, Any]) -> None:
    strong_gan(content)
    content["method"]["fakeScoreUpdates"] = 3
    content["method"]["gan"]["generatorWeight"] = 8e-3
    content["training"]["learningRate"] = 3e-4


def warned_of(
    teacher: Teacher,
    solver: Solver,
    pair_files: list[Path],
    spec: Spec,
    conditions: Conditions = DIGITS,
    unguided: Solver | None = None,
) -> dict[str, int]:
    """Trains, and returns each measure that was warned of with the step of the first time."""
    seed = spec.training.seed
    distillation = Distillation(
        teacher,
        spec,
        TrainingData(
            conditions,
            Pairs(pair_files, 512) if spec.method.regression is not None else None,
            Digits(pair_files) if spec.method.gan is not None else None,
        ),
        l2_regression_loss,
    )
    probe, health, found = HealthProbe(teacher, solver, conditions, seed, unguided=unguided), Health(spec), {}
    health.feed({"step": 0, **probe.measure(distillation.generator, distillation.mu_fake)})
    while distillation.step_count < spec.training.generator_updates:
        try:
            report = distillation.step()
        except TrainingDivergedError:
            break
        if distillation.step_count % LOG_EVERY:
            continue
        norms = {f"{name}_gradient_norm": norm for name, norm in report.gradient_norms.items()}
        if "gan_discriminator" in report.losses:
            norms["discriminator_loss"] = report.losses["gan_discriminator"]
        measures = probe.measure(distillation.generator, distillation.mu_fake)
        for warning in health.feed({"step": distillation.step_count, **norms, **measures}):
            (name,) = re.findall(r"\((\w+)\)", warning)
            found.setdefault(name, distillation.step_count)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("cause", "symptoms"),
    [
        (no_regression, {"fake_score_loss"}),
        # The head is strongest where it likes: noise, or one colour.
        (strong_gan, {"fake_score_loss", "teacher_loss", "contrast", "colour_drift", "saturation"}),
        (idle_fake_score, {"score_difference"}),
        (slow_fake_score, {"fake_score_loss"}),
    ],
)
def test_a_collapse_is_warned_of_within_a_hundred_updates(
    teacher: Teacher,
    solver: Solver,
    pair_files: list[Path],
    cause: Callable[[dict[str, Any]], None],
    symptoms: set[str],
) -> None:
    assert warned_of(teacher, solver, pair_files, spec(cause, updates=100)).keys() & symptoms


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_too_strong_a_guidance_is_warned_of(tmp_path: Path) -> None:
    """Distribution matching alone towards a strongly guided score; the warnings name the guidance."""
    teacher = load_teacher(local_path("builtin://emoji-teacher", tmp_path))
    encoder = partial(TextEncoder, teacher.directory, torch.device("cpu"))
    prompts = ["red apple", "cat face", "rocket", "octopus"]
    embeddings = PromptEmbeddings(prompts, teacher.digest, FileStorage(tmp_path), tmp_path / "local", encoder)
    conditions = PromptConditions(embeddings=embeddings)
    content = yaml.safe_load((EXAMPLES / "distill-emoji.yaml").read_text())
    content["spec"]["teacher"]["guidanceScale"] = 20.0
    content["spec"]["method"] = {"name": "DMD2", "fakeScoreUpdates": 1}
    content["spec"]["training"] |= {"generatorUpdates": 60, "batchSize": 4}
    guided, unguided = (
        teacher_solver(teacher.denoiser, "DDIM", 18, scale, conditions.negative) for scale in (20.0, 1.0)
    )
    strong = parse_manifest(content).spec
    found = warned_of(teacher, guided, [], strong, conditions, unguided)
    assert found.keys() & {"saturation", "colour_drift"}
    health = Health(strong)
    health.feed({"step": 0, **START})
    (warning,) = fed(health, *[{"saturation": 0.5}] * 3)
    assert "lower spec.teacher.guidanceScale" in warning
    # A solver of higher order diverges there: its images, and so pairs, are themselves wrong, which is told apart.
    contrasts = []
    for scale in (3.0, 20.0):
        solver, plain = (teacher_solver(teacher.denoiser, "PNDM", 50, s, conditions.negative) for s in (scale, 1.0))
        probe = HealthProbe(teacher, solver, conditions, seed=0, unguided=plain)
        contrasts.append(probe.measure(Generator(teacher.denoiser, (999,)), teacher.denoiser)["guidance_contrast"])
    assert contrasts[0] < 1.6
    assert contrasts[1] > 2.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("settings", [lambda content: None, gentle_dmd2], ids=["the example", "DMD2"])
def test_a_healthy_run_raises_no_alarm(
    teacher: Teacher, solver: Solver, pair_files: list[Path], settings: Callable[[dict[str, Any]], None]
) -> None:
    assert warned_of(teacher, solver, pair_files, spec(settings)) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_may_not_collapse_ends_with_the_checkpoint_from_before_it(
    manifest_dict: dict[str, Any], tmp_path: Path
) -> None:
    manifest = copy.deepcopy(manifest_dict)
    manifest["spec"]["training"] |= {
        "generatorUpdates": 400,
        "checkpointEvery": 10,
        "sampleEvery": 400,
        "fakeScore": {"learningRate": 1e-12},
        "stopOnCollapse": True,
    }
    manifest["spec"]["evaluation"]["every"] = 400
    assert run_stage_here(Stage.PREPARE, manifest, tmp_path).error is None
    error = run_stage_here(Stage.DISTILL, manifest, tmp_path).error
    assert error is not None
    assert (error.reason, error.exit_code) == ("TrainingCollapsed", ExitCode.DIVERGED)
    assert "raise spec.training.fakeScore.learningRate" in error.message
    # Three measures show it, at step 30; two more checkpoints would have been made before the end.
    assert "the checkpoint of step 20 is kept" in error.message
    assert tracked_status(tmp_path) == "FAILED"
    kept = sorted(path.name for path in (tmp_path / "storage" / RUN_KEY / "checkpoints").iterdir())
    assert [int(re.findall(r"\d+", name)[0]) for name in kept] == [10, 20], kept


def test_the_probe_is_the_same_however_it_is_cut(teacher: Teacher, solver: Solver, probe: HealthProbe) -> None:
    generator = Given(teacher, solver, lambda x: x * 0.9)
    whole = HealthProbe(teacher, solver, ClassLabels(10), seed=0, micro_batch=32)
    assert whole.measure(generator, teacher.denoiser) == pytest.approx(
        probe.measure(generator, teacher.denoiser), rel=1e-4
    )
