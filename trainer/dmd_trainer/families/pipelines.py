"""Stock pipelines in a folder: parts of known classes alone, and none of the code that the folder may bring"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError, refusing
from dmd_api.parsing import read_json_object
from dmd_trainer.families.networks.song_unet import SongUNet

SAVE_AGAIN = "save the pipeline again with save_pretrained(..., safe_serialization=True)"
TRANSFORMERS = (
    "CLIPFeatureExtractor",
    "CLIPImageProcessor",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "CLIPVisionModelWithProjection",
    "SiglipImageProcessor",
    "SiglipVisionModel",
    "T5EncoderModel",
    "T5Tokenizer",
    "T5TokenizerFast",
)
"""The classes of transformers that pipelines of the known families are made of; some of its others load pickles."""
SAFETY_CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""A part that diffusers has beside the pipeline that it is of."""
OWN = (["song_unet", "SongUNet"], ["diffusers", "SongUNet"])
"""What an index says of our own network: its file is in the folder too, but here it is loaded by our class."""


def read_json(path: Path, otherwise: str = "the pipeline is not complete") -> dict[str, Any]:
    """A JSON object from a pipeline's folder.

    Raises:
        BadInputError: it is missing (and `otherwise` says what that means), or holds something else.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: missing: {otherwise}; {SAVE_AGAIN}") from error


def read_index(directory: Path) -> dict[str, Any]:
    """A pipeline's `model_index.json`, whose parts are all of known classes.

    Raises:
        BadInputError: it cannot be read, or it names a class that is not loaded here.
    """
    from diffusers import DiffusionPipeline

    path = directory / "model_index.json"
    index = read_json(path, "the folder is not a diffusers pipeline")
    if not _is_a(_of_diffusers(index.get("_class_name")), DiffusionPipeline):
        raise BadInputError(
            f"{path}: {index.get('_class_name')} is no pipeline of diffusers; one with code of its own is not loaded"
        )
    for part, value in index.items():
        if isinstance(value, list) and not part.startswith("_") and not _is_known(value):
            raise BadInputError(f"{path}: {part} is {value}, a class that is not loaded here; save a stock pipeline")
    return index


def _is_known(value: list[Any]) -> bool:
    import diffusers

    if value in ([None, None], SAFETY_CHECKER, *OWN):
        return True
    match value:
        case ["transformers", str(name)]:
            return name in TRANSFORMERS
        case ["diffusers", str(name)]:
            return _is_a(_of_diffusers(name), diffusers.ModelMixin, diffusers.SchedulerMixin)
    return False


def _of_diffusers(name: Any) -> Any:
    import diffusers

    return getattr(diffusers, name, None) if isinstance(name, str) else None


def _is_a(found: Any, *kinds: type) -> bool:
    return isinstance(found, type) and issubclass(found, kinds)


def absent_parts(index: dict[str, Any]) -> dict[str, None]:
    """Parts that a pipeline was saved without, which must be said to be absent (SD3 without T5)."""
    return {part: None for part, value in index.items() if value == [None, None]}


def present_parts(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that a pipeline has."""
    return {
        part: (value[0], value[1])
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and None not in value and not part.startswith("_")
    }


def load_pipeline(directory: Path, **given: Any) -> Any:
    """The pipeline in a folder, its weights from safetensors.

    Args:
        directory: in diffusers format.
        given: parts that are not loaded, and other arguments of `from_pretrained`.

    Raises:
        BadInputError: it cannot be loaded, or is not made of known classes.
    """
    import diffusers

    index = read_index(directory)
    pipeline: Any = getattr(diffusers, index["_class_name"])
    own = [part for part, value in index.items() if value in OWN and part not in given]
    with refusing(f"{directory}: the pipeline cannot be loaded", SAVE_AGAIN):
        loaded = pipeline.from_pretrained(
            directory, use_safetensors=True, **absent_parts(index) | dict.fromkeys(own) | given
        )
        # diffusers would look for their class where the index says, which is the folder's own code.
        loaded.register_modules(
            **{part: SongUNet.from_pretrained(directory, subfolder=part, use_safetensors=True) for part in own}
        )
    return loaded
