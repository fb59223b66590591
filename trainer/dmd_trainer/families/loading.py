"""Loads the parts of a pipeline, each by its own library, and refuses weights that are not those of its network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError, refusing
from dmd_trainer.families.pipelines import SAVE_AGAIN, load_pipeline, present_parts, read_index, read_json

META = "meta"
"""The device where weights have names, dtypes and shapes only: loading them there reads the files' headers alone."""
SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""The weights of a part in one file, diffusers' name and transformers'; shards have `NAME.index.json` beside them."""
OTHER_WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack"}
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
"""The prefixes of weights that were saved from a wrapper of the network."""
OPTIONAL = {"safety_checker", "feature_extractor", "image_encoder"}
"""Parts that a pipeline draws the same pictures without."""
SHOWN = 3
"""Names of weights in a message."""


def part_config(directory: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """A part's configuration with its class, which the pipeline's index may be alone to name.

    Raises:
        BadInputError: it cannot be read, or the two name different classes.
    """
    path = directory / part / file
    config = read_json(path, f"the pipeline has no {part}/")
    _, named = present_parts(read_index(directory)).get(part, (None, config.get("_class_name")))
    if config.setdefault("_class_name", named) != named:
        raise BadInputError(f"{path}: is a {config['_class_name']}, and model_index.json says {named}; make them agree")
    return config


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
    what = f"{folder}: the weights cannot be loaded"
    stored = sorted(path.name for path in folder.glob("*") if path.suffix in OTHER_WEIGHTS)
    if not any(folder.glob("*.safetensors")):
        found = f"only {', '.join(stored)}" if stored else "no weights"
        raise BadInputError(f"{what}: there is {found}, and only .safetensors are read; {SAVE_AGAIN}")
    of_transformers = issubclass(kind, PreTrainedModel)
    if of_transformers:
        options["ignore_mismatched_sizes"] = True  # they are refused below, where their names can be told
    with refusing(what, SAVE_AGAIN):
        _check_files(folder, of_transformers=of_transformers)
        network, found = kind.from_pretrained(
            directory, subfolder=part, use_safetensors=True, output_loading_info=True, **options
        )
    _check_names(folder, found)
    return network


def check_loading(directory: Path, given: Mapping[str, Any]) -> None:
    """Loads all that a pipeline's index names, as an export will, on the meta device.

    Args:
        directory: the pipeline's.
        given: the parts that are loaded already.

    Raises:
        BadInputError: a part is missing, of a class not known here, or does not load.
    """
    from torch import nn

    index = read_index(directory)
    parts = dict(given)
    for name, (library, class_name) in present_parts(index).items():
        if name in parts:
            continue
        if not (directory / name).is_dir():
            spare = f', or write "{name}": [null, null] there' if name in OPTIONAL else ""
            raise BadInputError(
                f"{directory}/{name} is missing: model_index.json names it, and the export loads it; add it{spare}"
            )
        kind = part_class(library, class_name)
        if issubclass(kind, nn.Module):
            parts[name] = load_part(directory, name, kind, device_map=META)
        else:
            with refusing(f"{directory}/{name} cannot be loaded", SAVE_AGAIN):
                parts[name] = kind.from_pretrained(directory / name)
    load_pipeline(directory, **parts)


def part_class(library: str, name: str) -> Any:
    """The class that a pipeline's index names for a part, which `read_index` knows."""
    import diffusers
    import transformers

    modules = {"diffusers": diffusers, "transformers": transformers}
    return getattr(modules.get(library) or getattr(diffusers.pipelines, library), name)


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
                    f"{index}: it and {shard} do not name the same weights ({_few(different)}); {SAVE_AGAIN}"
                )
    elif single.exists():
        _names_in(single)


def _names_in(file: Path) -> set[str]:
    from safetensors import safe_open

    with refusing(f"{file}: the weights cannot be loaded", SAVE_AGAIN), safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def _check_names(folder: Path, found: Mapping[str, Any]) -> None:
    missing, others = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    wrong = [
        f"{name} is {tuple(stored)} and should be {tuple(own)}" for name, stored, own in found["mismatched_keys"] or ()
    ]
    what = f"{folder}: the weights are not those of its config.json"
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
