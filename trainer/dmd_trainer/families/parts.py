"""Loads the parts of a pipeline, each by its own library, and refuses weights that are not those of its network."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError, reading

FIELD = "spec.teacher.uri"
SAVE_AGAIN = "save the pipeline again with save_pretrained(..., safe_serialization=True)"
META = "meta"
"""The device where weights have names, dtypes and shapes only: loading them there reads the files' headers alone."""
SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""The weights of a part in one file, diffusers' name and transformers'; shards have `NAME.index.json` beside them."""
OTHER_WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack"}
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
"""The prefixes of weights that were saved from a wrapper of the network."""
SHOWN = 3
"""Names of weights in a message."""


def read_json(path: Path, otherwise: str = "the teacher is not complete") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BadInputError: it is missing (and `otherwise` says what that means), or holds something else.
    """
    with reading(f"{FIELD}: {path} cannot be read", SAVE_AGAIN):
        if not path.exists():
            raise BadInputError(f"{FIELD}: {path} is missing: {otherwise}; save one with save_pretrained")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise BadInputError(f"{FIELD}: {path} is not a JSON object; {SAVE_AGAIN}")
        return content


def read_index(directory: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline.

    Raises:
        BadInputError: there is none.
    """
    return read_json(directory / "model_index.json", "the teacher is not a diffusers pipeline")


def parts_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that a pipeline has."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
    }


def absent_parts(index: Mapping[str, Any]) -> dict[str, None]:
    """The parts that a pipeline was saved without, as its `from_pretrained` has to be told of them."""
    return {name: None for name, value in index.items() if isinstance(value, list) and value[:1] == [None]}


def part_config(directory: Path, part: str, file: str = "config.json", otherwise: str = "") -> dict[str, Any]:
    """A part's configuration, its class as the pipeline's index has it: that is the one that diffusers makes."""
    config = read_json(directory / part / file, otherwise or f"the teacher has no {part}/")
    named = parts_of(read_index(directory)).get(part)
    return config if named is None else config | {"_class_name": named[1]}


def load_part(directory: Path, part: str, kind: Any, **options: Any) -> Any:
    """A network of a pipeline, by its class's own `from_pretrained`.

    Args:
        directory: the pipeline's.
        part: the network's name and folder.
        kind: the class, of diffusers or transformers.
        options: for `from_pretrained`; `device_map="meta"` reads no weights.

    Raises:
        BadInputError: its library cannot load it, or its weights are not the network's; libraries begin with random
            weights where some are missing.
    """
    from transformers import PreTrainedModel

    folder = directory / part
    what = f"{FIELD}: {folder}: the weights cannot be loaded"
    stored = sorted(path.name for path in folder.glob("*") if path.suffix in OTHER_WEIGHTS)
    if not any(folder.glob("*.safetensors")):
        found = f"only {', '.join(stored)}" if stored else "no weights"
        raise BadInputError(f"{what}: there is {found}, and only .safetensors are read; {SAVE_AGAIN}")
    of_transformers = issubclass(kind, PreTrainedModel)
    if of_transformers:
        options["ignore_mismatched_sizes"] = True  # they are refused below, where their names can be told
    with reading(what, SAVE_AGAIN):
        _check_files(folder, of_transformers=of_transformers)
        network, found = kind.from_pretrained(
            directory, subfolder=part, use_safetensors=True, output_loading_info=True, **options
        )
    _check_names(folder, found)
    return network


def check_parts(directory: Path, given: Mapping[str, Any]) -> None:
    """Loads all that a pipeline's index names, as an export will, on the meta device.

    Args:
        directory: the pipeline's.
        given: the parts that are loaded already.

    Raises:
        BadInputError: a part is missing, of a class not known here, or does not load.
    """
    import diffusers
    from torch import nn

    index = read_index(directory)
    parts: dict[str, Any] = {**absent_parts(index), **given}
    for name, (library, class_name) in parts_of(index).items():
        if name in parts:
            continue
        if not (directory / name).is_dir():
            raise BadInputError(
                f"{FIELD}: {directory}/{name} is missing: model_index.json names it, and the export loads it; add the "
                f'folder, or write "{name}": [null, null] there'
            )
        kind = part_class(directory, name, library, class_name)
        if issubclass(kind, nn.Module):
            parts[name] = load_part(directory, name, kind, device_map=META)
        else:
            with reading(f"{FIELD}: {directory}/{name} cannot be loaded", SAVE_AGAIN):
                parts[name] = kind.from_pretrained(directory / name)
    with reading(f"{FIELD}: {directory}: its parts do not make a pipeline", SAVE_AGAIN):
        getattr(diffusers, index["_class_name"]).from_pretrained(directory, **parts)


def part_class(directory: Path, part: str, library: str, name: str) -> Any:
    """The class that a pipeline's index names for a part: diffusers', one of its pipelines' own, or transformers'.

    Raises:
        BadInputError: there is none.
    """
    import diffusers

    module = import_module(library) if library in {"diffusers", "transformers"} else None
    kind = getattr(module or getattr(diffusers.pipelines, library, None), name, None)
    if not isinstance(kind, type):
        raise BadInputError(
            f"{FIELD}: {directory}/model_index.json: {part} is a {library}.{name}, which diffusers and transformers do "
            "not have here; correct its name"
        )
    return kind


def _check_files(folder: Path, *, of_transformers: bool) -> None:
    """Opens the files of weights, whose lengths have to be those of their headers.

    An index of shards has to name the weights that they hold, which libraries do not look at.
    """
    single = folder / SINGLE_FILES[of_transformers]
    index = single.with_name(f"{single.name}.index.json")
    # Where a folder has both, each library prefers another one.
    if index.exists() and not (of_transformers and single.exists()):
        named: dict[str, str] = read_json(index)["weight_map"]
        for shard in sorted(set(named.values())):
            own = {name for name, where in named.items() if where == shard}
            if different := _names_in(folder / shard) ^ own:
                raise BadInputError(
                    f"{FIELD}: {index}: it and {shard} do not name the same weights ({_few(different)}); {SAVE_AGAIN}"
                )
    elif single.exists():
        _names_in(single)


def _names_in(file: Path) -> set[str]:
    from safetensors import safe_open

    with reading(f"{FIELD}: {file} cannot be read", SAVE_AGAIN), safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def _check_names(folder: Path, found: Mapping[str, Any]) -> None:
    missing, others = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    wrong = [
        f"{name} is {tuple(stored)} and should be {tuple(own)}" for name, stored, own in found["mismatched_keys"] or ()
    ]
    what = f"{FIELD}: {folder}: the weights are not those of its config.json"
    if missing:
        for prefix, wrapper in WRAPPERS.items():
            if any(name.startswith(prefix) for name in others):
                raise BadInputError(
                    f"{what}: their names begin with {prefix}, as {wrapper} has them ({_few(others)}); save the "
                    "network that it wraps"
                )
        unknown = f", {len(others)} of other names ({_few(others)})" if others else ""
        raise BadInputError(f"{what}: {len(missing)} missing ({_few(missing)}){unknown}; {SAVE_AGAIN}")
    if wrong:
        raise BadInputError(f"{what}: {len(wrong)} of other shapes ({_few(wrong)}); {SAVE_AGAIN}")


def _few(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
