"""`dmdctl run --shrink`: every recipe in examples/ goes through all stages, its architecture made small."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dmd_api import runtime
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import load_manifest, parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage, stages
from dmd_trainer.families.architectures import KNOWN, known_architecture
from dmd_trainer.families.shrinking import save_shrunken_teacher, shrink_network
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime import launcher, worker
from dmdctl.local.local_runner import free_port
from dmdctl.local.run import with_local_defaults, with_processes
from dmdctl.local.shrink import shrink
from tests.cli.test_cli import dmdctl

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
METHOD = {"pairs", "solver_steps", "features", "init_from"}
"""What of the method `--shrink` may change."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_method_stays_and_nothing_elsewhere_is_named(path: Path, tmp_path: Path) -> None:
    manifest = load_manifest(path)
    small = shrink(manifest, tmp_path)
    assert "s3://" not in small.model_dump_json()
    assert "hf://" not in small.model_dump_json()

    def kept(of: DMDDistillation) -> dict[str, object]:
        method = of.spec.method.model_dump(exclude={"init_from"})
        method["regression"] = {k: v for k, v in (method["regression"] or {}).items() if k not in METHOD}
        optimisation = of.spec.training.model_dump(
            include={"learning_rate", "betas", "precision", "sharding", "activation_checkpointing", "seed"}
        )
        return method | optimisation | {"guidance": of.spec.teacher.guidance_scale}

    assert kept(small) == kept(manifest)
    assert bool(small.spec.method.init_from) == bool(manifest.spec.method.init_from)
    assert small.spec.training.generator_updates <= 4
    assert shrink(manifest, tmp_path) == small, "the same command goes on with the same run"


@pytest.mark.parametrize("name", KNOWN)
def test_a_shrunken_teacher_is_built_like_the_real_one(name: str, tmp_path: Path) -> None:
    architecture = known_architecture(name)
    small = shrink_network(architecture.network)
    for kept in ("down_block_types", "up_block_types", "num_class_embeds", "attention_levels", "addition_embed_type"):
        assert small.get(kept) == architecture.network.get(kept)
    if "block_out_channels" in small:
        assert len(small["block_out_channels"]) == len(architecture.network["block_out_channels"])
    save_shrunken_teacher(architecture, tmp_path)
    teacher = load_teacher(tmp_path)
    assert sum(p.numel() for p in teacher.denoiser.network.parameters()) < 1e7
    if architecture.decoder is not None:
        index = json.loads((tmp_path / "model_index.json").read_text())
        absent = {key: None for key, value in index.items() if isinstance(value, list) and value[0] is None}
        DiffusionPipeline.from_pretrained(tmp_path, **absent)


@contextmanager
def as_only_worker(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """What the launcher tells a stage's only process; the process itself is this one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    variables = {
        launcher.RESULTS: folder,
        runtime.RUN_KEY: "run",
        runtime.SCRATCH: folder / "scratch",
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
    }
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        patch.setattr(worker, "end_with_parent", lambda: None)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_recipe_runs_through_all_stages(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp(path.stem)
    small = with_processes(shrink(load_manifest(path), folder / "inputs"), 1)
    tracking = f"sqlite:///{tmp_path_factory.getbasetemp()}/mlflow.db"  # one for all: making it takes a while
    small = with_local_defaults(small, (folder / "storage").as_uri(), tracking)
    content = small.model_dump(mode="json", by_alias=True, exclude_none=True)
    with as_only_worker(monkeypatch, folder):
        monkeypatch.setenv(runtime.MANIFEST, parse_manifest(content).model_dump_json(by_alias=True))
        for stage in Stage:
            monkeypatch.setattr(sys, "argv", ["worker", str(stage)])
            monkeypatch.setenv("MASTER_PORT", str(free_port()))
            code = worker.main()
            result = StageResult.model_validate_json((folder / "rank-00000.json").read_text())
            assert code == ExitCode.DONE, (stage, result.error)
    assert (folder / "storage" / "run" / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_shards_where_the_recipe_does_and_keeps_apart(tmp_path: Path) -> None:
    recipe = next(path for path in EXAMPLES if "sdxl-dmd2-lora" in path.stem)
    done = dmdctl("run", recipe, "--shrink", folder=tmp_path, timeout=500)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "dmd-runs").iterdir()} == {"shrunken"}
    again = dmdctl("run", recipe, "--shrink", folder=tmp_path)
    assert again.returncode == ExitCode.DONE
    assert again.stdout.count("done before") == len(stages(load_manifest(recipe)))


def test_an_unknown_architecture_is_asked_for(tmp_path: Path) -> None:
    recipe = next(path for path in EXAMPLES if path.stem == "distill-cifar10")
    text = recipe.read_text().replace("edm-cifar10-32x32-cond-vp", "mine")
    text = "\n".join(line for line in text.splitlines() if "annotations" not in line)
    (tmp_path / "m.yaml").write_text(text)
    done = dmdctl("run", "m.yaml", "--shrink", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "--shrink: the architecture of s3://models/mine is not known" in done.stderr
