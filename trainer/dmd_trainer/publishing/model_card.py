"""The model card of an exported generator: what it is, how it is called, how good it is, under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from dmd_api.text import markdown
from dmd_api.uris import parse_uri
from dmd_trainer.families.pipelines import absent_parts, read_index
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.licence import licence_fields

PICTURE = "samples.png"
"""The file of the picture in the pipeline's folder."""

METHODS = {
    "DMD": "Distribution Matching Distillation (DMD, arXiv 2311.18828)",
    "DMD2": "Distribution Matching Distillation (DMD2, arXiv 2405.14867)",
    "regression": "regression on its ODE pairs",
}
"""The names of a report's methods in full."""


@dataclass(frozen=True)
class CardFacts:
    """The facts about a run on its model card.

    Attributes:
        name: the run's.
        teacher: the teacher's URI.
        method: what its kind of training is called.
        manifest_hash: of the run.
        fid: the generator's and its teacher's, as text.
        picture: a PNG file of the generator's images.
        repository: where it is published on the hub, if it is.
    """

    name: str
    teacher: str
    method: str
    manifest_hash: str
    fid: str
    picture: bytes | None = None
    repository: str | None = None


class Call(NamedTuple):
    """How the exported pipeline is loaded and called.

    Attributes:
        pipeline: its diffusers class.
        dtype: of its weights.
        arguments: of the call.
    """

    pipeline: str
    dtype: str
    arguments: Mapping[str, Any]


def model_card(teacher: Teacher, call: Call, facts: CardFacts) -> str:
    """The text of the pipeline's README.md.

    Args:
        teacher: whose licence holds for the generator too.
        call: of the pipeline.
        facts: about the run.
    """
    licence = licence_fields(teacher.directory)
    steps = call.arguments["num_inference_steps"]
    channels, height, width = teacher.image_shape
    fields = {
        **licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image" if teacher.takes_text else "unconditional-image-generation",
        **_base_model(facts.teacher),
        "tags": ["one-step" if steps == 1 else "few-step", "distilled", "dmd"],
    }
    name = markdown(str(licence.get("license_name", licence["license"])))
    link = f" ({markdown(str(licence['license_link']))})" if "license_link" in licence else ""
    picture = f"\n![Images of the generator]({PICTURE})\n" if facts.picture is not None else ""
    return f"""---
{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---
# {markdown(facts.name)}

A {"one-step" if steps == 1 else f"{steps}-step"} generator, distilled from {markdown(facts.teacher)} with \
{facts.method} by dmd-operator.
{"One network evaluation makes" if steps == 1 else f"{steps} network evaluations make"} an image.
{picture}
```python
{_example(teacher, call, facts.repository or "THIS_FOLDER")}
```

- Images: {width}x{height} pixels, {channels} channel{"s" if channels > 1 else ""}, the only size it was trained at
- Weights: {call.dtype}
- FID: {markdown(facts.fid)}
- Manifest: {facts.manifest_hash}
- Licence: the teacher's, {name}{link}.
"""


def _example(teacher: Teacher, call: Call, place: str) -> str:
    """Python that draws an image, without this project's code."""
    loading = [f'"{place}"', f"torch_dtype=torch.{call.dtype}"]
    if teacher.family.carries_code(teacher.denoiser.network):
        loading.append("trust_remote_code=True")  # the network's file is in the folder
    loading += [f"{part}=None" for part in absent_parts(read_index(teacher.directory))]
    arguments = ['"a red apple"'] if teacher.takes_text else []
    arguments += [f"{key}={value}" for key, value in call.arguments.items()]
    if teacher.num_class_embeds is not None:
        arguments.append("class_labels=0")
    return f"""import torch
from diffusers import {call.pipeline}

pipeline = {call.pipeline}.from_pretrained({", ".join(loading)})
image = pipeline({", ".join(arguments)}).images[0]
image.save("image.png")"""


def _base_model(uri: str) -> dict[str, str]:
    """The field `base_model` where the teacher is on the Hugging Face hub, which takes no other names."""
    found = parse_uri(uri)
    return {"base_model": "/".join(found.path.partition("@")[0].split("/")[:2])} if found.scheme == "hf" else {}
