"""What a plan says of GPUs: memory, the settings that make one enough, time and storage."""

import copy
from pathlib import Path
from typing import Any

import pytest

from dmd_api.errors import BadInputError
from dmd_api.loading import load_manifest, parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage
from dmd_trainer.families.architecture import KNOWN, known_architecture
from dmd_trainer.planning.fitting import enough_settings
from dmd_trainer.planning.gpus import UTILISATION, Flops, Gpu, find_gpu, stage_seconds
from dmd_trainer.planning.memory import estimate_memory
from dmd_trainer.planning.teacher import ANNOTATION, architecture_of, at_hand
from dmd_trainer.planning.work import count_work
from dmdctl.planning.gpu_plan import GIGABYTE
from tests.cli.test_cli import dmdctl
from tests.conftest import MANIFEST

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def manifest_of(annotation: str | None = None, **changes: dict[str, Any]) -> DMDDistillation:
    content = copy.deepcopy(MANIFEST)
    content["spec"]["teacher"] = {"uri": "s3://teachers/mine"}
    if annotation is not None:
        content["metadata"]["annotations"] = {ANNOTATION: annotation}
    for part, values in changes.items():
        content["spec"].setdefault(part, {}).update(values)
    return parse_manifest(content)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_examples_architecture_is_known(path: Path) -> None:
    manifest = load_manifest(path)
    architecture = architecture_of(manifest)
    assert architecture is not None
    assert at_hand(manifest) or architecture.name in KNOWN


def test_an_architecture_that_nothing_names_is_none_and_a_wrong_one_is_refused() -> None:
    assert architecture_of(manifest_of()) is None
    named = architecture_of(manifest_of("sdxl"))
    assert named is not None
    assert named.name == "sdxl"
    with pytest.raises(BadInputError, match="must be one of"):
        architecture_of(manifest_of("sdxxl"))
    assert find_gpu("rtx 4090") is find_gpu("RTX4090")
    with pytest.raises(BadInputError, match="must be one of A10, A100"):
        find_gpu("V100")


@pytest.mark.slow
def test_settings_are_tried_in_their_order_until_they_are_enough() -> None:
    manifest = manifest_of(training={"batchSize": 64}, workers={"processesPerNode": 2})
    architecture = known_architecture("ddpm-cifar10")
    total = estimate_memory(manifest, architecture).total
    assert enough_settings(manifest, architecture, total)[0] == []

    settings, estimate, _ = enough_settings(manifest, architecture, 0.9 * total)
    assert settings == ["training.sharding: FSDP", "training.activationCheckpointing: true"][: len(settings)]
    assert estimate.total <= 0.9 * total

    settings, estimate, _ = enough_settings(manifest, architecture, 1)
    assert settings == [
        "training.sharding: FSDP",
        "training.activationCheckpointing: true",
        "training.microBatchSize: 1",
        "teacher.weights: fp8",
        "teacher.offload: true",
    ]
    assert estimate.total > 1


def test_one_process_cannot_shard_and_what_is_set_is_not_advised() -> None:
    manifest = manifest_of(training={"batchSize": 2, "activationCheckpointing": True}, teacher={"weights": "fp8"})
    settings, _, _ = enough_settings(manifest, known_architecture("ddpm-cifar10"), 1)
    assert settings == ["training.microBatchSize: 1", "teacher.offload: true"]


def test_sdxl_on_one_80_gb_gpu_is_what_its_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights decide; to measure the step of each setting takes minutes. `benchmarks/gpu` measured it on a GPU.
    monkeypatch.setattr("dmd_trainer.planning.memory.measure_activations", lambda *_: 12 * GIGABYTE)
    example = load_manifest(EXAMPLES[0].with_name("distill-sdxl-dmd2-four-steps.yaml"))
    architecture = known_architecture("sdxl")
    one = example.model_copy(
        update={
            "spec": example.spec.model_copy(
                update={
                    "workers": example.spec.workers.model_copy(update={"nodes": 1, "processes_per_node": 1}),
                    "training": example.spec.training.model_copy(update={"batch_size": 2, "micro_batch_size": 1}),
                }
            )
        }
    )
    settings, estimate, _ = enough_settings(one, architecture, 80 * GIGABYTE)
    assert settings == ["teacher.weights: fp8", "teacher.offload: true", "method.lora: {rank: 64}"]
    assert 40 * GIGABYTE < estimate.total <= 80 * GIGABYTE


def test_time_is_operations_over_what_the_gpus_do() -> None:
    regression = {"name": "DMD", "regression": {"pairs": 24, "solver": "Heun", "solverSteps": 3}}
    manifest = manifest_of(method=regression, training={"precision": "bf16"}, workers={"processesPerNode": 2})
    work = count_work(manifest)
    assert work.forward[Stage.PREPARE] == 24 * 5
    assert work.backward[Stage.DISTILL] == 12 * 8 * 3  # two generator passes and the fake score's
    seconds = stage_seconds(manifest, work, Flops(10.0, 4.0, 0.0), Gpu(bf16=1000.0, fp32=1.0))
    assert seconds[Stage.PREPARE] == pytest.approx(24 * 5 * 10 / (UTILISATION * 1000))
    expected = (work.forward[Stage.DISTILL] + 3 * work.backward[Stage.DISTILL]) * 10 / (UTILISATION * 1000 * 2)
    assert seconds[Stage.DISTILL] == pytest.approx(expected)
    alone = count_work(manifest_of(method={**regression, "fakeScoreUpdates": 0}))
    assert alone.backward[Stage.DISTILL] == 12 * 8  # the generator's pass over the pairs
    assert work.forward[Stage.DISTILL] - alone.forward[Stage.DISTILL] == 12 * 8 * 2  # teacher and fake score


def test_several_steps_and_the_gan_are_work_too() -> None:
    def distill(**method: Any) -> tuple[float, float, float]:
        content = {"name": "DMD2", "regression": None, "fakeScoreUpdates": 5, **method}
        work = count_work(manifest_of(method=content, data={"images": {"uri": "s3://images"}}))
        return work.forward[Stage.DISTILL], work.backward[Stage.DISTILL], work.classified_backward[Stage.DISTILL]

    updates = 12 * 8
    one, four, gan = distill(), distill(generatorSteps=4), distill(gan={})
    assert one[1] == four[1] == gan[1] == updates * 6
    assert (one[2], gan[2]) == (0, updates * (1 + 5))
    # A generator of four steps is called 1.5 times more for each of five batches, and four times for an evaluation.
    assert four[0] - one[0] == 5 * 1.5 * updates + 4 * 3 * 100


@pytest.mark.slow
def test_the_plan_of_a_published_recipe(tmp_path: Path) -> None:
    done = dmdctl("plan", EXAMPLES[0].with_name("distill-cifar10.yaml"), "--gpu-memory", 16, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "Memory of each GPU (edm-cifar10, 7 GPUs)",
        "activations of 56 samples",
        "enough: GPUs of 24, 40, 48, 80, 141 GB",
        "16 GB are enough with",
        "training.sharding: FSDP",
        "time on 7 H100 (fp32",
        "pairs: 100,000, 2.46 GB in storage",
        "checkpoints: 1.56 GB each, 2 kept",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_known_is_a_users_mistake(tmp_path: Path) -> None:
    done = dmdctl("plan", EXAMPLES[0], "--gpu", "H1000", folder=tmp_path)
    assert done.returncode == 2
    assert "--gpu: 'H1000' is not known here; must be one of" in done.stderr
