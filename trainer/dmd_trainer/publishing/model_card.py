"""The model card of an exported generator: what it is, how it is called, how good it is, under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from dmd_api.errors import BadInputError
from dmd_api.parsing import LARGEST_YAML, parse_yaml
from dmd_api.text import markdown, neutral
from dmd_trainer.families.teacher import Teacher

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
    """

    name: str
    teacher: str
    method: str
    manifest_hash: str
    fid: str


def model_card(teacher: Teacher, pipeline: str, call: Mapping[str, Any], facts: CardFacts) -> str:
    """The text of the pipeline's README.md.

    Args:
        teacher: whose licence holds for the generator too.
        pipeline: the diffusers class.
        call: the arguments that it is called with.
        facts: about the run.
    """
    licence = _teacher_licence(teacher.directory)
    arguments = ", ".join(f"{key}={value}" for key, value in call.items())
    if teacher.takes_text:
        arguments = f'"a red apple", {arguments}'
    labels = ", class_labels=3" if teacher.num_class_embeds is not None else ""
    steps = call["num_inference_steps"]
    kind = "one-step" if steps == 1 else f"{steps}-step"
    trusting = ""
    if teacher.family.carries_code(teacher.denoiser.network):
        trusting = ", trust_remote_code=True"  # the network's file is in the folder
    evaluations = "One network evaluation makes" if steps == 1 else f"{steps} network evaluations make"
    fields = {"license": licence, "library_name": "diffusers", "tags": ["one-step", "distilled", "dmd"]}
    return f"""---
{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---
# {markdown(facts.name)}

A {kind} generator, distilled from {markdown(facts.teacher)} with {facts.method} by dmd-operator.
{evaluations} an image.

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("THIS_FOLDER"{trusting})
image = pipeline({arguments}{labels}).images[0]
```

- FID: {markdown(facts.fid)}
- Manifest: {facts.manifest_hash}
- Licence: the teacher's, {markdown(licence)}.
"""


def _teacher_licence(directory: Path) -> str:
    """The licence that the front matter of the teacher's own model card names."""
    card = directory / "README.md"
    with card.open("rb") if card.is_file() else BytesIO() as file:
        text = file.read(LARGEST_YAML).decode(errors="ignore").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return "other"
    try:
        (fields,) = parse_yaml(text.removeprefix("---\n").partition("\n---")[0], str(card))
    except (BadInputError, ValueError):  # a card is for people: no run ends because of one
        return "other"
    licence = fields.get("license") if isinstance(fields, dict) else None
    return neutral(licence) if isinstance(licence, str) else "other"
