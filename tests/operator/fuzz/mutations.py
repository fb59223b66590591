"""JSON with mistakes in it, as people and programs make them."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.api.values import VALUES

Path = tuple[str | int, ...]
HUGE = "y" * 20_000
CONTROL = ("\x1b]0;title\x07", "a\u202eb", "\u0000", "é" * 400, "<script>")
DEEPER = 100


def mutated(document: dict[str, Any], choose: random.Random) -> tuple[dict[str, Any], list[Path]]:
    """A copy with a mistake or two, and where they are."""
    result, places = copy.deepcopy(document), []
    for _ in range(choose.randint(1, 2)):
        path = choose.choice(list(_places(result)))
        _mistake(result, path, choose)
        places.append(path)
        if not result:
            break
    return result, places


def _places(value: Any, where: Path = ()) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*where, key)
        yield from _places(below, (*where, key))


def _mistake(document: Any, path: Path, choose: random.Random) -> None:
    *above, key = path
    parent = document
    for step in above:
        parent = parent[step]
    match choose.choice(("value", "value", "value", "text", "null", "missing", "misspelt", "wrapped", "huge", "deep")):
        case "value":
            parent[key] = copy.deepcopy(choose.choice(VALUES))
        case "text":
            parent[key] = choose.choice(CONTROL)
        case "null":
            parent[key] = None
        case "missing":
            del parent[key]
        case "misspelt" if isinstance(parent, dict):
            parent[f"{key}s"] = parent.pop(key)
        case "misspelt":
            parent.append(copy.deepcopy(parent[key]))
        case "wrapped":
            parent[key] = [parent[key]]
        case "huge":
            parent[key] = HUGE
        case "deep":
            value: Any = "end"
            for _ in range(DEEPER):
                value = {"a": value}
            parent[key] = value
