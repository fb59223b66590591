"""Text-to-image teachers of every family, held against diffusers' own pipelines, and distilled whole."""

import io
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Prompts
from dmd_api.stages import Stage
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.conditions.prompts import read_prompts
from dmd_trainer.diffusion.default_solver import fitting_solvers
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.evaluation.timing import measure_throughput
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.progress import ProgressBoard
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.stages import inputs
from tests.stages import run_stage_here
from tests.trainer.text_teachers import MAKERS, make_sd

PROMPTS = ["red apple", "cat face", "rocket"]
CPU = torch.device("cpu")
STEPS = 4


@pytest.fixture(scope="module", params=list(MAKERS))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(MAKERS[request.param](tmp_path_factory.mktemp("teachers") / request.param))


def conditions_of(teacher: Teacher, folder: Path) -> PromptConditions:
    embeddings = PromptEmbeddings(
        PROMPTS, teacher.digest, FileStorage(folder), folder / "local", partial(TextEncoder, teacher.directory, CPU)
    )
    return PromptConditions(embeddings=embeddings, added=teacher.added_conditions)


def noise_of(teacher: Teacher) -> torch.Tensor:
    return torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(3))


def load_pipeline(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
    return DiffusionPipeline.from_pretrained(folder, **absent)


def pipeline_images(pipeline: Any, noise: torch.Tensor, **arguments: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPTS[:2], latents=noise, output_type="pt", height=16, width=16, **arguments).images
    return images * 2 - 1


def test_the_teacher_draws_what_its_pipeline_draws(teacher: Teacher, tmp_path: Path) -> None:
    """Text encoders, guidance, solver and VAE together; embeddings are kept in half precision."""
    conditions = conditions_of(teacher, tmp_path)
    noise = noise_of(teacher)
    name = fitting_solvers(teacher.denoiser.prediction)[0]
    if name == "DDIM":
        name = "PNDM"
    solver = teacher_solver(teacher.denoiser, name, STEPS, 3.0, conditions.negative)
    condition = conditions.embed({"prompt": torch.tensor([0, 1])}, CPU)
    found = teacher.autoencoder.decode(solver(noise, condition)).clamp(-1, 1)
    pipeline = load_pipeline(teacher.directory)
    expected = pipeline_images(pipeline, noise, num_inference_steps=STEPS, guidance_scale=3.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_the_sampler_alone_is_timed_from_the_same_prompts(teacher: Teacher, guidance: float) -> None:
    """What is timed without text encoders and VAE makes the latents that the whole pipeline decodes."""
    pipeline = load_pipeline(teacher.directory)
    calls: list[tuple[torch.Tensor, ...]] = []
    network = getattr(pipeline, "transformer", None) or pipeline.unet

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs = {**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs}
        calls.append((kwargs["encoder_hidden_states"], kwargs.get("hidden_states", kwargs.get("sample"))))

    network.register_forward_pre_hook(record, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 1, "guidance_scale": guidance, "height": 16, "width": 16}
    noise = noise_of(teacher)
    found = measure_throughput(pipeline, {**arguments, "latents": noise}, 2, rounds=1)
    assert found.whole > 0
    assert found.images_per_second == 2 / found.whole
    assert len(calls) % 2 == 0
    sampler, whole = calls[-2:]
    assert all(torch.equal(one, other) for one, other in zip(sampler, whole, strict=True))


def test_new_weights_are_the_same_on_every_rank(tmp_path: Path) -> None:
    from dmd_api.loading import parse_manifest
    from dmd_trainer.dmd.distillation import Distillation
    from dmd_trainer.dmd.draws import TrainingData
    from dmd_trainer.dmd.losses import l2_regression_loss
    from tests.conftest import MANIFEST

    teacher = load_teacher(MAKERS["sd"](tmp_path / "sd"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    method = {"name": "DMD2", "gan": {}, "lora": {"rank": 2}}
    manifest = text_manifest(MANIFEST, teacher.directory, prompts, **method)
    manifest["spec"]["data"]["images"] = {"uri": "builtin://emoji"}
    spec = parse_manifest(manifest).spec
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # what a process drew before is of no consequence
        made = Distillation(teacher, spec, TrainingData(conditions_of(teacher, tmp_path)), l2_regression_loss)
        states.append({**made.fake_score_network.module.state_dict(), **made.generator_network.module.state_dict()})
        average = made.ema.module.state_dict()
        assert all(
            torch.equal(value, average[key]) for key, value in made.generator_network.module.state_dict().items()
        )
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_embeddings_are_made_once_and_shared(tmp_path: Path) -> None:
    teacher = load_teacher(MAKERS["sd"](tmp_path / "sd"))
    first = conditions_of(teacher, tmp_path / "a").embeddings
    expected = first.at(torch.tensor([2, 0]))

    def never() -> TextEncoder:
        raise AssertionError("everything is cached")

    second = PromptEmbeddings(PROMPTS, teacher.digest, FileStorage(tmp_path / "a"), tmp_path / "elsewhere", never)
    found = second.at(torch.tensor([2, 0]))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_prompts_are_read_from_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("red apple\n\n cat face \n")
    (tmp_path / "b.jsonl").write_text('{"caption": "rocket", "id": 1}\n"bus"\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["tree", None], "n": [1, 2]}), tmp_path / "c.parquet")
    found = read_prompts(Prompts(uri=tmp_path.as_uri()), tmp_path)
    assert found == ["red apple", "cat face", "rocket", "bus", "tree"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "\n\n", "no prompts"),
        ("a.jsonl", '{"title": "x"}', "has no text or caption or prompt"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.csv", "title\nx\n", "it has no text or caption or prompt, but title"),
        ("a.xml", "x", "neither of"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInputError, match=complaint):
        read_prompts(Prompts(uri=(tmp_path / name).as_uri()), tmp_path)


def text_manifest(manifest: dict[str, Any], teacher: Path, prompts: Path, **method: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(manifest))
    spec = content["spec"]
    spec["teacher"] = {"uri": teacher.as_uri(), "guidanceScale": 3.0}
    spec["data"] = {"prompts": {"uri": prompts.as_uri()}}
    spec["method"] = method
    spec["training"] |= {"generatorUpdates": 4, "checkpointEvery": 2, "sampleEvery": 4, "batchSize": 4}
    spec["evaluation"] = {
        "samples": 24,
        "every": 4,
        "batchSize": 12,
        "reference": {"uri": "builtin://emoji"},
        "features": {"uri": "builtin://emoji-clip"},
        "metrics": ["FID", "CLIPScore"],
        "clip": {"uri": "builtin://emoji-clip"},
        "resolution": 32,
    }
    return content


def test_all_prompts_and_captions_share_one_encoder(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    """Each shard of images has embeddings of its own, and there may be thousands."""
    folder, images = make_sd(tmp_path / "teacher"), tmp_path / "images"
    images.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    for name in ("a", "b"):
        table = pa.table({"image": [picture.getvalue()], "text": [f"picture {name}"]})
        pq.write_table(table, images / f"{name}.parquet")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple")
    manifest = text_manifest(manifest_dict, folder, prompts, name="DMD2", gan={})
    manifest["spec"]["data"]["images"] = {"uri": images.as_uri()}
    context: Any = SimpleNamespace(
        manifest=parse_manifest(manifest),
        device=torch.device("cpu"),
        shared_storage=FileStorage(tmp_path / "shared"),
        scratch=tmp_path / "scratch",
        progress=ProgressBoard(Stage.DISTILL),
    )
    teacher = load_teacher(folder)
    with patch.object(inputs, "TextEncoder", wraps=TextEncoder) as made:
        inputs.training_conditions(context, teacher).embed({"prompt": torch.tensor([0])}, context.device)
        _, condition = inputs.real_images(context, teacher).at(torch.tensor([0, 1]))
    assert made.call_count == 1
    assert not torch.equal(*condition["encoder_hidden_states"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("sdxl", {"name": "DMD2", "fakeScoreUpdates": 2, "generatorTimestep": 399, "gan": {}}),
        ("sd3", {"name": "DMD", "regression": {"pairs": 8, "solver": "FlowMatchEuler", "solverSteps": 3}}),
    ],
)
def test_a_family_is_distilled_through_all_stages(
    manifest_dict: dict[str, Any], tmp_path: Path, family: str, method: dict[str, Any]
) -> None:
    """SD's, and LoRA in several steps, are among the shrunken recipes of `tests/cli/test_shrink.py`."""
    teacher = MAKERS[family](tmp_path / "teacher")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    manifest = text_manifest(manifest_dict, teacher, prompts, **method)
    if "gan" in method:
        manifest["spec"]["data"]["images"] = {"uri": "builtin://emoji"}
    for stage in Stage:
        result = run_stage_here(stage, manifest, tmp_path)
        assert result.error is None, (stage, result.error)
    # Of the prompts, and of the real images' captions for the GAN term.
    assert len(list((tmp_path / "storage" / "cache").glob("prompts-*"))) == (2 if "gan" in method else 1)
