"""`dmdctl run --shrink`: recipes in examples/ go through all stages, their architectures made small."""

import json
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from dmd_api.exit_codes import ExitCode
from dmd_api.loading import load_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import Stage
from dmd_trainer.families.architecture import KNOWN, known_architecture
from dmd_trainer.families.family import WIDTH
from dmd_trainer.families.shrinking import save_shrunken_teacher
from dmd_trainer.families.teacher import load_teacher
from dmdctl.local.shrink import shrink
from tests.cli.test_cli import dmdctl
from tests.stages import RUN_KEY, run_stage_here

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
METHOD = {"pairs", "solver_steps", "features", "init_from"}
"""What of the method `--shrink` may change."""
BY_THE_COMMAND = "distill-sdxl-dmd2-lora"
"""The recipe that `dmdctl` itself runs, in several processes: tests/install/test_wheel.py."""


def parts_of(recipe: DMDDistillation) -> set[str]:
    """What a whole run of this recipe puts together."""
    method = recipe.spec.method
    parts = {method.name, f"fake score: {method.fake_score_updates > 0}", f"steps: {method.generator_steps > 1}"}
    parts |= {name for name in ("gan", "lora", "init_from") if getattr(method, name) is not None}
    return parts | ({f"pairs: {method.regression.loss}"} if method.regression else set())


def whole_runs() -> list[Path]:
    """Recipes that put together what no other one of the same teacher, precision and sharding does."""
    recipes = {path: load_manifest(path) for path in EXAMPLES}
    chosen: list[Path] = []
    # Those of many parts first: they stand for those of some of these parts.
    for path, recipe in sorted(
        recipes.items(), key=lambda item: (-len(parts_of(item[1])), item[0].stem != BY_THE_COMMAND)
    ):
        others = (recipes[other] for other in chosen)
        alike = (other for other in others if _setting(other) == _setting(recipe))
        if not any(parts_of(recipe) <= parts_of(other) for other in alike):
            chosen.append(path)
    assert {path.stem for path in chosen} >= {BY_THE_COMMAND}
    return sorted(chosen)


def _setting(recipe: DMDDistillation) -> tuple[str, str, str]:
    training = recipe.spec.training
    return recipe.spec.teacher.uri, training.precision, training.sharding


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_method_stays_and_nothing_elsewhere_is_named(path: Path, tmp_path: Path) -> None:
    manifest = load_manifest(path)
    small = shrink(manifest, tmp_path)
    assert "s3://" not in small.model_dump_json()
    assert "hf://" not in small.model_dump_json()

    def kept(of: DMDDistillation) -> dict[str, object]:
        method = of.spec.method.model_dump(exclude={"init_from", "fake_score_updates"})
        method["regression"] = {k: v for k, v in (method["regression"] or {}).items() if k not in METHOD}
        optimisation = of.spec.training.model_dump(
            include={"learning_rate", "betas", "precision", "sharding", "activation_checkpointing", "seed"}
        )
        return method | optimisation | {"guidance": of.spec.teacher.guidance_scale}

    assert kept(small) == kept(manifest)
    assert bool(small.spec.method.init_from) == bool(manifest.spec.method.init_from)
    assert small.spec.training.generator_updates <= 4
    # As many kinds of updates: none, one at a time, or more.
    assert min(small.spec.method.fake_score_updates, 2) == min(manifest.spec.method.fake_score_updates, 2)
    assert shrink(manifest, tmp_path) == small, "the same command goes on with the same run"


@pytest.mark.parametrize("name", KNOWN)
def test_a_shrunken_teacher_is_built_like_the_real_one(name: str, tmp_path: Path) -> None:
    architecture = known_architecture(name)
    small = architecture.family.shrink(architecture.network, WIDTH)
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


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_recipe_is_accepted_by_its_stages(path: Path, tmp_path: Path) -> None:
    """By all of them where no other recipe does the same, else by preflight."""
    whole = path in whole_runs() and path.stem != BY_THE_COMMAND
    content = shrink(load_manifest(path), tmp_path / "inputs").model_dump(mode="json", by_alias=True, exclude_none=True)
    for stage in Stage if whole else [Stage.PREFLIGHT]:
        result = run_stage_here(stage, content, tmp_path)
        assert result.error is None, (stage, result.error)
    assert (tmp_path / "storage" / RUN_KEY / "report.json").is_file() == whole


def test_an_unknown_architecture_is_asked_for(tmp_path: Path) -> None:
    recipe = next(path for path in EXAMPLES if path.stem == "distill-cifar10")
    text = recipe.read_text().replace("edm-cifar10-32x32-cond-vp", "mine")
    text = "\n".join(line for line in text.splitlines() if "annotations" not in line)
    (tmp_path / "m.yaml").write_text(text)
    done = dmdctl("run", "m.yaml", "--shrink", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "--shrink: the architecture of s3://models/mine is not known" in done.stderr
