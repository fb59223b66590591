"""Reads foreign pickles without running them.

A pickle is a program: it names functions and calls them. Here every name it uses stands for an inert `Record` that
only keeps what it was called with, names outside a short list end the reading, and no function of the pickle's choice
is ever looked up. `tensor` makes tensors of records afterwards, from their bytes alone.
"""

import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd_api.errors import BadInputError

KNOWN = {
    "builtins.frozenset",
    "builtins.set",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
    "_codecs.encode",
}
"""What pickled tensors and plain containers are made of."""
KNOWN_MODULES = ("dnnlib.", "numpy.", "torch.nn.modules.", "torch_utils.", "training.")
"""Where the published checkpoints' own classes come from."""


class Record:
    """What a pickle says of an object of some class, or of a function's result.

    Attributes:
        name: the class or function in full, e.g. "collections.OrderedDict".
        args: what it was called with.
        state: what its attributes were set to, mostly a dict.
        items: its entries, if it was filled as a mapping.
        entries: its members, if it was filled as a list or set.
    """

    name: str
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    entries: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        record = super().__new__(cls)
        record.args, record.state, record.items, record.entries = args, None, {}, []
        return record

    def __init__(self, *_: Any, **__: Any) -> None:
        """Everything is kept already: unpickling calls `__new__` alone for some objects."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """As a list is filled."""
        self.entries.append(value)

    def extend(self, values: Sequence[Any]) -> None:
        """As a list is filled."""
        self.entries.extend(values)

    def add(self, value: Any) -> None:
        """As a set is filled."""
        self.entries.append(value)


class _InertUnpickler(pickle.Unpickler):
    """Finds a class of records for each known name, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        # torch's element types are names, not calls: "torch.float32", and "torch.FloatStorage" of older versions.
        is_type = module == "torch" and (
            name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
        )
        if full not in KNOWN and not full.startswith(KNOWN_MODULES) and not is_type:
            raise BadInputError(
                f"the pickle asks for {full}, which no published checkpoint needs and which was not run; "
                "it may be malicious: get the checkpoint from its authors again"
            )
        return type(name, (Record,), {"name": full})

    def persistent_load(self, pid: Any) -> Any:
        raise BadInputError(
            "the file was written by torch.save, not by pickle; "
            "convert its state dict with safetensors.torch.save_file and give that file"
        )


def read_pickle(path: Path) -> Any:
    """What `path` holds: plain Python values, and a `Record` for everything else.

    Raises:
        BadInputError: it cannot be read, is no pickle, or asks for something unknown, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _InertUnpickler(file).load()
    except BadInputError as error:
        raise BadInputError(f"{path}: {error.message}") from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pickle raises nearly anything at bytes that are no pickle
        raise BadInputError(f"{path}: is not a pickle, or a damaged one ({error}); download it again") from error


def tensor(value: Any) -> Tensor | None:
    """The tensor or parameter that a record describes, on the CPU; None where it describes something else.

    Raises:
        BadInputError: it describes a tensor that its bytes do not hold.
    """
    if not isinstance(value, Record):
        return None
    try:
        match value.name, value.args:
            case ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_)):
                return tensor(data)
            case "torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, *_):
                # as_strided refuses a view beyond the storage.
                return _elements(storage).as_strided(tuple(size), tuple(stride), offset).clone()
    except BadInputError:
        raise
    except Exception as error:
        raise BadInputError(f"a tensor in the pickle is damaged ({error}); download it again") from error
    return None


def _elements(storage: Any) -> Tensor:
    """All elements of a storage record, as one dimension."""
    if not isinstance(storage, Record) or storage.name != "torch.storage._load_from_bytes":
        raise BadInputError("a tensor in the pickle has no storage of its own; download it again")
    (content,) = storage.args
    loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.storage.TypedStorage):
        raise BadInputError("a tensor in the pickle has a storage without an element type; download it again")
    # Not .untyped(), which warns that typed storages are of the past: so are these files.
    return torch.empty(0, dtype=loaded.dtype).set_(loaded._untyped_storage)
