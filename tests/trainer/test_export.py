"""What an exported pipeline consists of; what it draws is held against the trainer in `conformance/`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors import safe_open
from safetensors.torch import load_file

from dmd_api.errors import BadInputError
from dmd_api.spec import Lora, Method
from dmd_api.text import neutral
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.publishing.adapters import KOHYA
from dmd_trainer.publishing.export import check_exportable, export_pipeline, generator_network
from dmd_trainer.publishing.licence import licence_fields
from dmd_trainer.publishing.model_card import Call, CardFacts, model_card
from tests.awkward import AWKWARD, steers
from tests.trainer.conformance.teachers import close, condition_of, noise_for, perturbed, teacher_folder

FACTS = CardFacts("run", "file:///teacher", "DMD", "abc", "1.0")


def exported(teacher: Teacher, folder: Path, facts: CardFacts = FACTS, **options: Any) -> Path:
    weights = options.pop("weights", None) or perturbed(teacher)
    export_pipeline(teacher, weights, [len(teacher.denoiser.schedule) - 1], folder, facts, **options)
    return folder


def test_the_card_says_what_a_user_of_the_hub_looks_for(tmp_path: Path) -> None:
    folder = teacher_folder("sd", tmp_path / "teacher")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: a-licence\nlicense_link: LICENSE.md\n---\n# Teacher\n"
    )
    (folder / "LICENSE.md").write_text("the teacher's terms")
    teacher = load_teacher(folder)
    out = exported(
        teacher, tmp_path / "pipeline", CardFacts("run", "hf://owner/name@main", "DMD", "abc", "1.0", b"a picture")
    )
    card = ModelCard.load(out / "README.md")  # the hub's own reader
    assert card.data.base_model == "owner/name"
    assert card.data.pipeline_tag == "text-to-image"
    assert card.data.library_name == "diffusers"
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "a-licence", "LICENSE.md")
    assert (out / "LICENSE.md").read_text() == "the teacher's terms"
    assert "16x16 pixels" in card.text
    assert "](samples.png)" in card.text
    assert (out / "samples.png").read_bytes() == b"a picture"


@pytest.mark.parametrize(
    "file",
    [
        "LICENSE",
        "LICENCE.txt",
        "COPYING",
        "NOTICE.md",
        "LICENSES/MIT.txt",
        "text_encoder/LICENSE",
        "docs/model-license.md",
    ],
)
def test_licences_of_any_layout_are_copied(tiny_ddpm: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_ddpm, folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("terms")
    out = exported(load_teacher(folder), tmp_path / "pipeline")
    assert (out / file).read_text() == "terms"
    assert ModelCard.load(out / "README.md").data.license_link == file


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (b"---\nlicense: mit\n---\n", {"license": "mit"}),
        (b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("---\nlicense: mit\n---\nModèle".encode("latin1"), {"license": "mit"}),
        (b"---\nlicense: [mit, apache-2.0]\n---\n", {"license": ["mit", "apache-2.0"]}),
        (b"---\nlicense: other\nlicense_name: x\nlicense_link: https://x\n---\n",
         {"license": "other", "license_name": "x", "license_link": "https://x"}),
        (b"---\n: [\n---\n", {"license": "other", "license_name": "the-teachers"}),
        (b"---\ndate: 2024-99-99\n---\n", {"license": "other", "license_name": "the-teachers"}),
        (b"license: mit\n", {"license": "other", "license_name": "the-teachers"}),
        (None, {"license": "other", "license_name": "the-teachers"}),
    ],
)  # fmt: skip
def test_a_teachers_card_is_read_as_the_hub_reads_it(
    tmp_path: Path, readme: bytes | None, expected: dict[str, object]
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme)
    assert licence_fields(tmp_path) == expected


@pytest.mark.parametrize("alpha", [None, 16.0, 2.0])
@torch.no_grad()
def test_adapters_say_that_alpha_is_their_rank(tmp_path: Path, alpha: float | None) -> None:
    """Their scale is in the weights, so that peft's own loader, which takes alpha from whoever calls it, agrees."""
    from peft import LoraConfig, set_peft_model_state_dict

    teacher = load_teacher(teacher_folder("sd", tmp_path / "teacher"))
    lora = Lora(rank=4, alpha=alpha)
    adapted: Any = teacher.trainable_network()
    add_lora(adapted, lora, teacher.family.adapted_layers)
    weights = perturbed(replace(teacher, denoiser=teacher.denoiser.with_network(adapted)))
    out = exported(teacher, tmp_path / "pipeline", weights=weights, lora=lora, dtype="float32")
    file = out / "lora" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert metadata["unet.r"] == metadata["unet.lora_alpha"] == 4
    kohya = load_file(out / "lora" / KOHYA)
    assert {float(value) for name, value in kohya.items() if name.endswith(".alpha")} == {4.0}

    loaded: Any = teacher.trainable_network()
    loaded.load_state_dict({name.replace(".base_layer", ""): v for name, v in weights.items() if "lora_" not in name})
    loaded.add_adapter(LoraConfig(**{name.removeprefix("unet."): value for name, value in metadata.items()}))
    set_peft_model_state_dict(loaded, {name.removeprefix("unet."): value for name, value in load_file(file).items()})
    condition, noise = condition_of("sd", teacher)[0], noise_for(teacher.sample_shape)
    adapted.load_state_dict(weights)
    level = teacher.denoiser.schedule.at(torch.tensor([999, 999]))
    expected = teacher.denoiser.with_network(adapted)(noise, level, condition)
    for network in (loaded, generator_network(teacher, weights, lora)):
        close(teacher.denoiser.with_network(network)(noise, level, condition), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_weight_of_an_export_has_one_dtype(tmp_path: Path, dtype: str) -> None:
    """Of a teacher in float16, whose text encoder would stay so, and whose U-Net would not."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(
        teacher_folder("sd", tmp_path / "full"), torch_dtype=torch.float16
    ).save_pretrained(tmp_path / "half")
    teacher = load_teacher(tmp_path / "half")
    lora = Lora(rank=2)
    adapted: Any = teacher.trainable_network()
    add_lora(adapted, lora, teacher.family.adapted_layers)
    out = exported(teacher, tmp_path / "pipeline", weights=adapted.state_dict(), lora=lora, dtype=dtype)
    files = [*out.rglob("*.safetensors")]
    assert len(files) == 5
    kept = {str(v.dtype) for file in files for name, v in load_file(file).items() if v.is_floating_point()}
    assert kept == {f"torch.{dtype}"}
    assert f"torch_dtype=torch.{dtype}" in (out / "README.md").read_text()


SAFETY = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
EXTRACTOR = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}


@pytest.mark.parametrize(
    ("index", "damage", "complaint"),
    [
        (SAFETY, lambda folder: None, "safety_checker: missing"),
        (SAFETY, lambda folder: weights_in(folder / "safety_checker", "pytorch_model.bin"), "checker: no weights"),
        (SAFETY, lambda folder: weights_in(folder / "safety_checker", "model.fp16.safetensors"), "checker: no weights"),
        (EXTRACTOR, lambda folder: None, "extractor: missing"),
        ({}, lambda folder: shutil.rmtree(folder / "text_encoder"), "text_encoder: missing"),
        ({}, lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(), "text_encoder: no weights"),
        ({}, lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer: missing"),
    ],
)
def test_a_part_that_only_the_export_loads_is_missed_before_training(
    tmp_path: Path, index: dict[str, Any], damage: Callable[[Path], None], complaint: str
) -> None:
    folder = teacher_folder("sd", tmp_path / "teacher", model_index=index)
    damage(folder)
    with pytest.raises(BadInputError, match=complaint):
        check_exportable(load_teacher(folder), Method())


def weights_in(folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / name).write_bytes(b"")


def test_a_pipeline_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = teacher_folder("sd", tmp_path / "a", model_index={"_class_name": "StableDiffusionInpaintPipeline"})
    with pytest.raises(BadInputError, match="StableDiffusionInpaintPipeline"):
        check_exportable(load_teacher(folder), Method())
    # Latents of a VQ-VAE, which have as many channels as pixels.
    folder = teacher_folder("ddpm", tmp_path / "b", model_index={"vqvae": ["diffusers", "VQModel"]})
    with pytest.raises(BadInputError, match="VQModel"):
        check_exportable(load_teacher(folder), Method())


@pytest.mark.parametrize(
    ("family", "method", "complaint"),
    [
        ("sd", {"generator_steps": 3}, "generatorSteps.*divi"),
        ("sd", {"generator_steps": 4, "generator_timestep": 398}, "generatorSteps.*divi"),
        ("sd3", {"generator_steps": 4}, "generatorSteps"),
        ("sd3", {"generator_timestep": 399}, "generatorTimestep"),
        ("ddpm", {"generator_steps": 2}, "generatorSteps"),
    ],
)
def test_what_no_stock_sampler_calls_is_refused(
    family: str, method: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    teacher = load_teacher(teacher_folder(family, tmp_path / "teacher"))
    with pytest.raises(BadInputError, match=complaint):
        check_exportable(teacher, Method(name="DMD2", **method))


CALL = Call("Pipeline", "float32", {"num_inference_steps": 1})


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_the_card_shows_what_others_wrote_as_text(tiny_teacher: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (folder / "README.md").write_text("---\n" + yaml.safe_dump({"license": text}) + "---\n# A teacher\n")
    teacher = replace(load_teacher(tiny_teacher), directory=folder)
    card = model_card(teacher, CALL, CardFacts(text, "file:///teacher", "DMD", "abc", text))
    assert steers(card) == []
    _, front, page = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == ("other" if text == AWKWARD["half a character"] else neutral(text))
    assert fields.keys() <= {"license", "license_name", "library_name", "pipeline_tag", "base_model", "tags"}
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page)
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    kinds |= {token.type for outer in tokens for token in outer.children or []}
    shown = {"heading", "paragraph", "bullet_list", "list_item", "fence", "inline", "text", "text_special", "softbreak"}
    assert kinds <= shown, kinds - shown
    assert sum(token.type == "heading_open" for token in tokens) == 1


BROKEN = [b"\xff\xfe", b"---\n" + b"[" * 9000, b"---\na: &a [*a]\n---\n", b"---\n- x\n---\n", b"---\n", b"x"]


@pytest.mark.parametrize("card", BROKEN)
def test_a_card_that_cannot_be_read_ends_no_run(tiny_teacher: Path, tmp_path: Path, card: bytes) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (folder / "README.md").write_bytes(card)
    assert "license: other\n" in model_card(replace(load_teacher(tiny_teacher), directory=folder), CALL, FACTS)


def test_what_no_stock_pipeline_calls_is_refused(tiny_ddpm: Path) -> None:
    teacher = load_teacher(tiny_ddpm)
    with pytest.raises(BadInputError, match="no pipeline"):
        check_exportable(replace(teacher, num_class_embeds=10), Method())
