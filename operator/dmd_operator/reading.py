"""Reads the API server's JSON, and refuses a resource that is too deep or too large before anything recursive sees it.

Parts of a resource are kept as they come (`podTemplate`, `resources`), and anyone may nest `managedFields`, of a pod
too, thousands of levels deep: further than Python's own recursion goes.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Levels that a part of a resource may be nested: the deepest field of a pod template is at 14."""
LARGEST = 256 * 1024
"""Characters and values that a part of a resource may have: the cache keeps every resource in memory."""
REFUSED = "refused"
"""The field of a resource, beside its `metadata`, that has the reason by part; no object of Kubernetes has it."""

_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "deletionTimestamp", "labels")
_CUT = 2 * DEEPEST
_TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}]')
"""Brackets, and strings, which may hold brackets of their own."""


def parse(text: bytes) -> Any:
    """The JSON's value; null stands for what is deep inside of one that is nested too deeply for Python.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        return json.loads(_cut(text.decode()))


def kept(resource: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a resource that the operator works with, or those that are intact and what is wrong with the others.

    Annotations and managed fields, which others fill, are dropped: a write of the status does not need them.

    Returns:
        The resource. Where it is refused, it has no `spec`, and the field `REFUSED` has the reason by part.
    """
    metadata = {field: resource["metadata"][field] for field in _METADATA if field in resource["metadata"]}
    parts = {"metadata": metadata, **{part: resource[part] for part in ("spec", "status") if part in resource}}
    refused = {part: why for part, value in parts.items() if (why := _excess(part, value)) is not None}
    if "status" in refused and "resolved" in (status := parts["status"]):
        # The one field of a status that takes anything. What is said instead cannot be read, and so is reset.
        without = {**status, "resolved": refused["status"]}
        if _excess("status", without) is None:
            parts["status"] = without
            del refused["status"]
    if "metadata" in refused:
        del metadata["labels"]  # the one field that a user can fill
    if refused:
        parts = {part: value for part, value in parts.items() if part not in {"spec", *refused} or part == "metadata"}
        parts[REFUSED] = refused
    return {**{field: resource[field] for field in ("apiVersion", "kind") if field in resource}, **parts}


def _excess(part: str, value: Any) -> str | None:
    """What is too much in a part of a resource; None where nothing is."""
    size, left = 0, [(value, part, 1)]
    while left:
        value, path, depth = left.pop()
        size += len(value) if isinstance(value, str | list | dict) else 1
        if isinstance(value, dict):
            size += sum(len(field) for field in value)
        if size > LARGEST:
            return f"{part} is larger than {LARGEST // 1024} KiB"
        if isinstance(value, dict | list) and depth > DEEPEST:
            return f"{path} is nested more than {DEEPEST} levels deep"
        named = isinstance(value, dict) and depth <= 2  # as spec.workers.podTemplate: enough to find it
        if isinstance(value, dict):
            left += [(child, f"{path}.{field[:64]}" if named else path, depth + 1) for field, child in value.items()]
        elif isinstance(value, list):
            left += [(child, path, depth + 1) for child in value]
    return None


def _cut(text: str) -> str:
    """The text with null for what is more than `_CUT` levels deep."""
    pieces, depth, start = [], 0, 0
    for token in _TOKENS.finditer(text):
        if token[0] in "{[":
            if depth == _CUT:
                pieces += [text[start : token.start()], "null"]
            depth += 1
        elif token[0] in "}]":
            depth -= 1
            if depth == _CUT:
                start = token.end()
    return "".join([*pieces, text[start:]])
