"""Reads weights from files: safetensors, or pickled tensors, of which nothing is run"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_weights(path: Path, device: torch.device | None = None) -> dict[str, Tensor]:
    """A state dict, on the CPU, or on the meta device if only names and shapes are wanted.

    Args:
        path: a .safetensors file, or what `torch.save` wrote of named tensors.
        device: which of the two.

    Raises:
        ValueError: it is neither, or there is more in it; its text says what is wrong.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=str(device or "cpu"))
        state = torch.load(path, map_location=device or "cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything at what is no weights
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds something other than named tensors")
    return state
