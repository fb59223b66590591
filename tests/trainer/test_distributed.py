"""Any number of processes gives the same gradients; a run killed anywhere ends as if it had not been."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Stage
from tests.stages import RUN_KEY, run_stage, run_stage_here, start_stage, tracked_status
from tests.trainer.test_text_to_image import text_manifest
from tests.trainer.text_teachers import make_sd

GRADIENTS = Path(__file__).with_name("gradients.py")
SHARDED_TEACHERS = Path(__file__).with_name("sharded_teachers.py")


@pytest.fixture(scope="module")
def prepared(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A manifest whose pairs are made, and the folder that they are in."""
    from tests.conftest import MANIFEST

    manifest = json.loads(json.dumps(MANIFEST))
    manifest["spec"]["teacher"]["uri"] = tiny_teacher.as_uri()
    folder = tmp_path_factory.mktemp("prepared")
    assert run_stage_here(Stage.PREPARE, manifest, folder).error is None
    return manifest, folder


@pytest.fixture(scope="module")
def alone(prepared: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process that nothing disturbed."""
    manifest, source = prepared
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(source / "storage", folder / "storage")
    assert run_stage_here(Stage.DISTILL, manifest, folder).error is None
    return folder


SHARDED = {"sharding": "FSDP", "activationCheckpointing": True, "microBatchSize": 1}
"""Over all processes, activations made again and batches in parts."""


@pytest.fixture(scope="module")
def gradients(
    prepared: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients and weights of two steps, by `RECIPE PROCESSES` and, where it is sharded, ` sharded`.

    The pixel teacher's whole training with a GAN term, and low-rank adapters among a text-to-image teacher's frozen
    weights, of a generator of two steps.
    """
    folder = tmp_path_factory.mktemp("gradients")
    pixels, source = json.loads(json.dumps(prepared[0])), prepared[1]
    pixels["spec"]["method"] |= {"name": "DMD2", "gan": {}, "fakeScoreUpdates": 2}
    pixels["spec"]["data"]["images"] = {"uri": "builtin://digits"}
    prompts = folder / "prompts.txt"
    prompts.write_text("red apple\n")
    method = {"name": "DMD2", "lora": {"rank": 2}, "generatorSteps": 2, "fakeScoreUpdates": 2}
    adapters = text_manifest(pixels, make_sd(folder / "teacher"), prompts, **method)
    found = {}
    for processes, jobs in (
        (1, {"pixels 1": (pixels, {}), "adapters 1": (adapters, {})}),
        (
            2,
            {
                "pixels 2": (pixels, {}),
                "pixels 2 sharded": (pixels, SHARDED),
                "adapters 2 sharded": (adapters, {"sharding": "FSDP", "microBatchSize": 1}),
            },
        ),
        (4, {"pixels 4": (pixels, {}), "pixels 4 sharded": (pixels, SHARDED)}),
    ):
        content = []
        for name, (manifest, how) in jobs.items():
            changed = json.loads(json.dumps(manifest))
            changed["spec"]["training"] |= how
            changed["spec"]["workers"] = {"nodes": 1, "processesPerNode": processes}
            content.append((changed, str(source / "storage" / RUN_KEY / "pairs"), str(folder / f"{name}.pt")))
        torchrun(processes, GRADIENTS, json.dumps(content))
        found |= {name: torch.load(folder / f"{name}.pt") for name in jobs}
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", ["2", "4", "2 sharded", "4 sharded"])
def test_any_number_of_processes_gives_the_same_gradients(
    gradients: dict[str, dict[str, torch.Tensor]], processes: str
) -> None:
    assert_alike(gradients[f"pixels {processes}"], gradients["pixels 1"], rtol=1e-8, atol=1e-12)


@pytest.mark.timeout(1200)
def test_sharded_adapters_get_the_same_gradients(gradients: dict[str, dict[str, torch.Tensor]]) -> None:
    expected = gradients["adapters 1"]
    assert sum("lora" in name and bool(value.any()) for name, value in expected.items()) > 10
    assert_alike(gradients["adapters 2 sharded"], expected, rtol=1e-8, atol=1e-12)


def test_a_sharded_teacher_predicts_as_a_whole_one(tmp_path: Path) -> None:
    """In fp32, bf16 and 8 bits."""
    torchrun(2, SHARDED_TEACHERS, str(make_sd(tmp_path / "teacher")))


def torchrun(processes: int, script: Path, *arguments: str) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script)]
    subprocess.run([sys.executable, *command, *arguments], check=True, timeout=200)


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, and of the exported generator."""
    run = folder / "storage" / RUN_KEY
    last = max((run / "checkpoints").iterdir())
    dcp_to_torch_save(last, folder / "state.pt")
    tensors: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}/{key}", inner)
        elif isinstance(value, torch.Tensor):
            tensors[prefix] = value

    collect("", torch.load(folder / "state.pt", weights_only=False))
    from safetensors.torch import load_file

    index = json.loads((run / "generator" / "best.json").read_text())
    return tensors | {f"best/{k}": v for k, v in load_file(run / index["file"]).items()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("processes", "kills"), [(1, 2), (4, 1)])
def test_a_run_killed_at_random_steps_ends_bit_identical(
    prepared: tuple[dict[str, Any], Path], alone: Path, tmp_path: Path, processes: int, kills: int
) -> None:
    """With two processes it is killed in `tests/e2e/test_disturbed.py`."""
    manifest, source = prepared
    undisturbed, killed = alone, tmp_path / "killed"
    shutil.copytree(source / "storage", killed / "storage")
    if processes > 1:
        undisturbed = tmp_path / "undisturbed"
        shutil.copytree(source / "storage", undisturbed / "storage")
        assert run_stage(Stage.DISTILL, manifest, undisturbed, processes=processes).error is None

    dice = random.Random(processes)
    kill_at = sorted(dice.sample(range(4, 12), kills))
    for attempt, step in enumerate(kill_at, start=1):
        stage = start_stage(Stage.DISTILL, manifest, killed, processes=processes, attempt=attempt)
        try:
            stage.wait_until(lambda progress, step=step: progress.step >= step)
        finally:
            stage.kill()
    assert run_stage(Stage.DISTILL, manifest, killed, processes=processes, attempt=kills + 1).error is None

    expected, found = final_state(undisturbed), final_state(killed)
    assert expected.keys() == found.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not different
    log = (killed / f"distill-{kills + 1}.log").read_text()
    assert "going on from step" in log
    assert tracked_status(killed) == "RUNNING"  # the evaluation follows


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sharded_run_goes_on_with_another_number_of_processes(
    prepared: tuple[dict[str, Any], Path], alone: Path, tmp_path: Path
) -> None:
    manifest, source = prepared
    resharded = tmp_path / "resharded"
    shutil.copytree(source / "storage", resharded / "storage")

    sharded = json.loads(json.dumps(manifest))
    sharded["spec"]["training"]["sharding"] = "FSDP"
    stage = start_stage(Stage.DISTILL, sharded, resharded, processes=4)
    try:
        stage.wait_until(lambda progress: progress.step >= 6)
    finally:
        stage.kill()
    assert run_stage(Stage.DISTILL, sharded, resharded, processes=2, attempt=2).error is None
    assert "going on from step" in (resharded / "distill-2.log").read_text()

    expected, found = final_state(alone), final_state(resharded)
    assert_alike(found, expected, rtol=1e-3, atol=1e-5)  # sums over ranks are rounded in another order


def test_sigterm_checkpoints_at_a_step_all_ranks_agree_on(
    prepared: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    manifest, source = prepared
    manifest = json.loads(json.dumps(manifest))
    manifest["spec"]["training"] |= {"generatorUpdates": 5000, "checkpointEvery": 4000}
    manifest["spec"]["evaluation"]["every"] = 5000
    shutil.copytree(source / "storage", tmp_path / "storage")
    stage = start_stage(Stage.DISTILL, manifest, tmp_path, processes=2)
    stage.wait_until(lambda progress: progress.step >= 5)
    stage.process.send_signal(signal.SIGTERM)
    assert stage.wait() == ExitCode.INTERRUPTED
    error = stage.result().error
    assert error is not None
    assert error.reason == "Interrupted"
    (checkpoint,) = (tmp_path / "storage" / RUN_KEY / "checkpoints").iterdir()
    content = json.loads((checkpoint / "manifest.json").read_text())
    assert content["step"] >= 5
    assert f"step {content['step']} of 5000" in error.message
    assert tracked_status(tmp_path) == "KILLED"


def test_a_training_that_explodes_stops_with_a_clear_error(
    prepared: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    manifest, source = prepared
    manifest = json.loads(json.dumps(manifest))
    # A learning rate of one takes Adam far from anything in a few steps.
    manifest["spec"]["training"] |= {"learningRate": 1.0, "generatorUpdates": 400, "checkpointEvery": 2}
    manifest["spec"]["evaluation"]["every"] = 400
    shutil.copytree(source / "storage", tmp_path / "storage")
    stage = start_stage(Stage.DISTILL, manifest, tmp_path, processes=2)
    assert stage.wait() == ExitCode.DIVERGED
    error = stage.result().error
    assert error is not None
    assert error.reason == "TrainingDiverged"
    assert "learningRate" in error.message
    assert tracked_status(tmp_path) == "FAILED"
    kept = [p for p in (tmp_path / "storage" / RUN_KEY / "checkpoints").iterdir() if (p / "manifest.json").exists()]
    assert kept
