"""Reads weights from files: safetensors, or pickled tensors, of which nothing is run"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict, on the CPU.

    Args:
        path: a .safetensors file, or what `torch.save` wrote of named tensors.

    Raises:
        ValueError: it is neither, or there is more in it; its text says what is wrong.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything at what is no weights
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds something other than named tensors")
    return state
