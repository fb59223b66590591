"""Stock pipelines in a folder: parts of known classes alone, and none of the code that the folder may bring"""

from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.parsing import read_json_object
from dmd_trainer.families.networks.song_unet import SongUNet

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


def read_index(directory: Path) -> dict[str, Any]:
    """A pipeline's `model_index.json`, whose parts are all of known classes.

    Raises:
        BadInputError: it cannot be read, or it names a class that is not loaded here.
    """
    path = directory / "model_index.json"
    try:
        index = read_json_object(path)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: missing; is it a diffusers pipeline?") from error
    if not isinstance(index.get("_class_name"), str):
        raise BadInputError(f"{path}: names no class of diffusers; a pipeline with code of its own is not loaded")
    for part, value in index.items():
        if isinstance(value, list) and not _is_known(value):
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
            return _is_a(getattr(diffusers, name, None), diffusers.ModelMixin, diffusers.SchedulerMixin)
    return False


def _is_a(found: Any, *kinds: type) -> bool:
    return isinstance(found, type) and issubclass(found, kinds)


def absent_parts(index: dict[str, Any]) -> dict[str, None]:
    """Parts that a pipeline was saved without, which must be said to be absent (SD3 without T5)."""
    return {part: None for part, value in index.items() if value == [None, None]}


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
    pipeline: Any = getattr(diffusers, index["_class_name"], None)
    if not _is_a(pipeline, diffusers.DiffusionPipeline):
        raise BadInputError(f"{directory}: {index['_class_name']} is no pipeline of diffusers; save a stock pipeline")
    own = [part for part, value in index.items() if value in OWN and part not in given]
    try:
        loaded = pipeline.from_pretrained(
            directory, use_safetensors=True, **absent_parts(index) | dict.fromkeys(own) | given
        )
        # diffusers would look for their class where the index says, which is the folder's own code.
        loaded.register_modules(
            **{part: SongUNet.from_pretrained(directory, subfolder=part, use_safetensors=True) for part in own}
        )
    except Exception as error:  # diffusers raises nearly anything at what it cannot load
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{directory}: the pipeline cannot be loaded ({reason}); save all of it again") from error
    return loaded
