"""Damaged teachers, with diffusers as the oracle: what it does not read is refused, what it reads is read alike.

`DMD_DAMAGED` says how many are made; `make fuzz` makes 500.
"""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Spec
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.publishing.export import check_exportable
from dmd_trainer.publishing.rehearsal import check_fit, rehearse_end, sample_conditions
from tests.conftest import MANIFEST
from tests.trainer.damage import damage
from tests.trainer.text_teachers import MAKERS

DAMAGES = int(os.environ.get("DMD_DAMAGED", "40"))
STRICTER = (
    "are not those of its config.json",  # libraries begin with random weights where some are missing
    "make them agree",  # of two classes, diffusers takes the index's
    "missing: model_index.json names a",  # of no files, transformers makes a tokenizer without words
    "not loaded here",  # classes of pipelines that nobody here knows
    "makes NaN",
    "decodes to NaN",
    "is of no known family",
    "predicts",
    "make no noise schedule",  # diffusers calculates with NaN
    "is not supported",  # values that some pipelines ignore, and others draw other pictures with
)
"""Refusals of what diffusers reads, and would go wrong later."""
META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3", "ddpm"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_ddpm: Path) -> Path:
    if request.param == "ddpm":
        return tiny_ddpm
    return MAKERS[request.param](tmp_path_factory.mktemp("teachers") / request.param)


def test_a_damaged_teacher_is_refused_or_read_as_diffusers_reads_it(whole: Path, tmp_path: Path) -> None:
    takes_text = (whole / "vae").exists()
    spec = spec_of(takes_text)
    wrong = []
    for seed in range(DAMAGES // 4):
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder / "teacher")
        what = damage(folder / "teacher", seed)
        refusal, teacher = ours(folder, spec)
        if refusal is not None and "model_max_length is" in refusal:
            continue  # the tokenizer's own library ends the process
        error, pipeline = diffusers_own(folder / "teacher", takes_text)
        if refusal is None and error is not None:
            wrong.append(f"{what}: read, but diffusers says {error}")
        elif refusal is not None and not (refusal.startswith("spec.") and "; " in refusal):
            wrong.append(f"{what}: without field or remedy: {refusal}")
        elif refusal is not None and error is None and not any(reason in refusal for reason in STRICTER):
            wrong.append(f"{what}: diffusers reads it, but {refusal}")
        elif teacher is not None and not alike(teacher, pipeline):
            wrong.append(f"{what}: read otherwise than diffusers reads it")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def spec_of(takes_text: bool) -> Spec:
    content: dict[str, Any] = copy.deepcopy(MANIFEST)
    data = {"prompts": {"uri": "builtin://emoji"}} if takes_text else {}
    content["spec"] |= {"method": {"name": "DMD2"}, "data": data}
    content["spec"]["evaluation"]["metrics"] = ["FID"]
    return parse_manifest(content).spec


def ours(folder: Path, spec: Spec) -> tuple[str | None, Teacher | None]:
    """What preflight says of a teacher, or the teacher as later stages load it."""
    try:
        empty = load_teacher(folder / "teacher", device=META)
        check_exportable(empty, spec.method)
        check_fit(empty, sample_conditions(empty, spec, META).condition)
        rehearse_end(empty, spec, folder / "rehearsal")
        if empty.takes_text:
            TextEncoder(folder / "teacher", CPU)
        return None, load_teacher(folder / "teacher")
    except BadInputError as error:
        return error.message, None


def diffusers_own(folder: Path, takes_text: bool) -> tuple[str | None, Any]:
    """What diffusers raises when it loads and calls the pipeline, or the pipeline."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        absent = {name: None for name, value in index.items() if isinstance(value, list) and value[:1] == [None]}
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **absent)
        pipeline.set_progress_bar_config(disable=True)
        pipeline(*(["a red apple"] if takes_text else []), num_inference_steps=4, output_type="np")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200], None
    return None, pipeline


def alike(teacher: Teacher, pipeline: Any) -> bool:
    pairs = [(teacher.denoiser.network, pipeline.components[teacher.family.part])]
    if teacher.takes_text:
        pairs.append((teacher.autoencoder.vae, pipeline.vae))
    for own, theirs in pairs:
        expected = theirs.state_dict()
        for name, value in own.state_dict().items():
            torch.testing.assert_close(value, expected[name].float(), rtol=0, atol=0, equal_nan=True)
    return True
