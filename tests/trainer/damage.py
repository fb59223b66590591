"""Damages of a pipeline's folder, each a function of its seed: what becomes of files that people copy and edit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WORDS: tuple[Any, ...] = (None, True, -1, 0, 3, 7.5, 10**12, 1e300, "", "8", "Nonsense", [], [1, 2], {}, {"a": 1})
"""Values that take the place of others in a configuration."""


def damage(folder: Path, seed: int) -> str:
    """Damages a folder in one way, and says how."""
    random_ = random.Random(seed)
    kind = random_.choice(KINDS)
    return f"{seed}: {kind.__name__}: {kind(folder, random_)}"


def files(folder: Path, *suffixes: str) -> list[Path]:
    """Those that a pipeline is loaded from, in an order of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and (not suffixes or path.suffix in suffixes))


def truncate(folder: Path, random_: random.Random) -> str:
    path = random_.choice(files(folder))
    content = path.read_bytes()
    path.write_bytes(content[: random_.randrange(len(content))])
    return path.name


def flip_bytes(folder: Path, random_: random.Random) -> str:
    path = random_.choice(files(folder))
    content = bytearray(path.read_bytes())
    for _ in range(random_.choice((1, 8))):
        content[random_.randrange(min(len(content), random_.choice((64, 4096, 10**9))))] ^= 1 << random_.randrange(8)
    path.write_bytes(content)
    return path.name


def delete_file(folder: Path, random_: random.Random) -> str:
    path = random_.choice(files(folder))
    path.unlink()
    return str(path.relative_to(folder))


def delete_folder(folder: Path, random_: random.Random) -> str:
    path = random_.choice(sorted(path for path in folder.iterdir() if path.is_dir()))
    shutil.rmtree(path)
    return path.name


def swap_files(folder: Path, random_: random.Random) -> str:
    suffix = random_.choice([suffix for suffix in (".json", ".safetensors") if len(files(folder, suffix)) > 1])
    one, other = random_.sample(files(folder, suffix), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"{one.relative_to(folder)} and {other.relative_to(folder)}"


def empty_file(folder: Path, random_: random.Random) -> str:
    path = random_.choice(files(folder))
    path.write_bytes(
        random_.choice((b"", b"\0" * 100, b"null", b"[]", b"version https://git-lfs.github.com/spec/v1\n"))
    )
    return str(path.relative_to(folder))


def change_value(folder: Path, random_: random.Random) -> str:
    path, config = _configuration(folder, random_)
    key = random_.choice(sorted(config))
    value = random_.choice(WORDS)
    path.write_text(json.dumps(config | {key: value}))
    return f"{path.relative_to(folder)}: {key} = {value!r}"


def remove_key(folder: Path, random_: random.Random) -> str:
    path, config = _configuration(folder, random_)
    key = random_.choice(sorted(config))
    del config[key]
    path.write_text(json.dumps(config))
    return f"{path.relative_to(folder)}: {key}"


def rename_class(folder: Path, random_: random.Random) -> str:
    path, config = _configuration(folder, random_)
    keys = sorted(key for key, value in config.items() if key == "_class_name" or isinstance(value, list))
    key = random_.choice(keys or ["_class_name"])
    value = config.get(key)
    config[key] = [value[0], "Nonsense"] if isinstance(value, list) and value else "Nonsense"
    path.write_text(json.dumps(config))
    return f"{path.relative_to(folder)}: {key}"


def change_weights(folder: Path, random_: random.Random) -> str:
    path = random_.choice(files(folder, ".safetensors"))
    weights = load_file(path)
    name = random_.choice(sorted(weights))
    change = random_.choice(("nan", "missing", "extra", "shape", "dtype", "prefix"))
    match change:
        case "nan":
            weights[name] = torch.full_like(weights[name], torch.nan)
        case "missing":
            del weights[name]
        case "extra":
            weights["another"] = torch.zeros(2)
        case "shape":
            weights[name] = torch.zeros(*weights[name].shape, 2)
        case "dtype":
            weights = {key: value.half() for key, value in weights.items()}
        case "prefix":
            prefix = random_.choice(("module.", "_orig_mod.", "model."))
            weights = {prefix + key: value for key, value in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    return f"{path.relative_to(folder)}: {change} {name}"


def _configuration(folder: Path, random_: random.Random) -> tuple[Path, dict[str, Any]]:
    """A small one: tokenizers' vocabularies are not edited by hand."""
    paths = [path for path in files(folder, ".json") if path.stat().st_size < 50_000]
    while True:
        path = random_.choice(paths)
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content:
            return path, content


KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    truncate,
    flip_bytes,
    delete_file,
    delete_folder,
    swap_files,
    empty_file,
    change_value,
    change_value,
    change_value,
    remove_key,
    remove_key,
    rename_class,
    change_weights,
    change_weights,
)
"""All kinds, those with the most cases more often."""
