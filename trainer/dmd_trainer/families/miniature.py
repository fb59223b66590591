"""A teacher's pipeline in small: its own configurations, classes and files, with narrow networks and random weights."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dmd_trainer.families.family import GROUPS, WIDTH, Family
from dmd_trainer.families.loading import part_class, part_config
from dmd_trainer.families.networks import ship_code
from dmd_trainer.families.pipelines import present_parts, read_index, read_json
from dmd_trainer.families.shrinking import small_decoder
from dmd_trainer.runtime.hub import ABOUT

TRANSFORMER_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": WIDTH,
    # T5's, as wide as the shrunken networks' text conditions.
    "d_model": 2 * WIDTH,
    "d_ff": 2 * WIDTH,
    "d_kv": GROUPS,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
"""What makes one of transformers' networks large, by the names that its configuration has for it."""


def save_miniature(directory: Path, family: Family, folder: Path) -> None:
    """Writes the small pipeline; the same one every time.

    What is no network (schedulers, tokenizers, image processors) is copied; networks keep the dtype of their weights.

    Args:
        directory: the teacher's.
        family: the teacher's.
        folder: where to.
    """
    torch.manual_seed(0)
    for name in (path.name for pattern in ABOUT for path in directory.glob(pattern)):
        _copy(directory / name, folder / name)
    for part, (library, class_name) in present_parts(read_index(directory)).items():
        build = _builder(directory, family, part, library, class_name)
        if build is None:
            _copy(directory / part, folder / part)
        else:
            network: Any = build()
            network.to(_stored_dtype(directory / part)).save_pretrained(folder / part)
            if part == family.part and family.carries_code(network):
                ship_code(folder)


def _builder(
    directory: Path, family: Family, part: str, library: str, class_name: str
) -> Callable[[], torch.nn.Module] | None:
    """Makes a part's small network; None for a part that is none."""
    if part == family.part:
        config = part_config(directory, part)
        return lambda: family.network_class(config).from_config(family.shrink(config, WIDTH))
    kind = part_class(library, class_name)
    if not issubclass(kind, torch.nn.Module):
        return None
    if part == "vae":
        return lambda: kind.from_config(small_decoder(read_json(directory / part / "config.json")))
    config_class = kind.config_class  # transformers'
    whole = config_class.from_pretrained(directory / part).to_dict()
    whole.pop("dtype", None)  # of the files that are read; the small network has the dtype of their weights
    return lambda: kind(config_class.from_dict(_small_transformer(whole)))


def _small_transformer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of transformers' with small sizes, and those of the networks within it (CLIP's two)."""
    return {
        name: _small_transformer(value) if isinstance(value, dict) else TRANSFORMER_SIZES.get(name, value)
        for name, value in config.items()
    }


def _stored_dtype(folder: Path) -> torch.dtype:
    """Of a part's weights, of which one stands for all."""
    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="pt") as file:
        name = next(iter(file.keys()))
        dtype = file.get_slice(name).get_dtype()
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(dtype, torch.float32)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
