"""Reads weights from files: safetensors, or pickled tensors, of which nothing is run"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of a header's names for them; all others are as wide as float32 or are no weights."""


def read_weights(path: Path, device: torch.device | None = None) -> dict[str, Tensor]:
    """A state dict, on the CPU, or on the meta device if only names and shapes are wanted.

    Args:
        path: a .safetensors file, or what `torch.save` wrote of named tensors.
        device: which of the two; None: the CPU.

    Raises:
        ValueError: it is neither, or there is more in it; its text says what is wrong.
    """
    try:
        if path.suffix == ".safetensors":
            on_meta = device is not None and device.type == "meta"
            return _read_header(path) if on_meta else load_file(path)
        state = torch.load(path, map_location=device or "cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything at what is no weights
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds something other than named tensors")
    return state


def _read_header(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        return {
            name: torch.empty(part.get_shape(), dtype=DTYPES.get(part.get_dtype(), torch.float32), device="meta")
            for name, part in found.items()
        }
