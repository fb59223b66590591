"""The parts of a teacher's pipeline, as its `model_index.json` names them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_trainer.families.family import Family
from dmd_trainer.families.pipelines import read_index

_WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
_WITHOUT_WEIGHTS = re.compile(r"(Tokenizer(Fast)?|Processor(Fast)?|FeatureExtractor|Scheduler)$")


def check_parts(pipeline: Path, family: Family) -> None:
    """Checks that the pipeline is one of the family's, and all of its parts there in the kind of file that is loaded.

    Args:
        pipeline: the teacher's folder.
        family: the teacher's.

    Raises:
        BadInputError: it is another pipeline, a part is missing, or a part has no safetensors weights.
    """
    index = read_index(pipeline)
    kind = index["_class_name"]
    if family.pipelines and kind not in family.pipelines:
        raise BadInputError(
            f"{pipeline}/model_index.json: a {kind} is not supported with this network, only "
            f"{' or '.join(family.pipelines)}; save the pipeline as one"
        )
    for part, (library, name) in _parts(index).items():
        if library is None:
            continue
        if not family.pipelines and part not in (family.part, "scheduler"):
            raise BadInputError(
                f"{pipeline}/{part}: a {kind} with a {name} is not supported: its network's images are not pixels; "
                "use another teacher"
            )
        remedy = f"add it, or set {part} to [null, null] in model_index.json if the pipeline works without it"
        if not any((pipeline / part).glob("*")):
            raise BadInputError(f"{pipeline}/{part}: missing: model_index.json names a {name}; {remedy}")
        weights = any(_WEIGHTS.fullmatch(file.name) for file in (pipeline / part).iterdir())
        if not weights and not _WITHOUT_WEIGHTS.search(name):
            raise BadInputError(
                f"{pipeline}/{part}: no weights of the {name} in safetensors format (model.safetensors); {remedy}; "
                "save_pretrained(..., safe_serialization=True) writes it"
            )


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[str | None, str]]:
    """The library and the class of each part; the library of parts that are absent is None."""
    entries = ((part, value) for part, value in index.items() if isinstance(value, list) and len(value) == 2)
    return {part: (value[0] and str(value[0]), str(value[1])) for part, value in entries}
