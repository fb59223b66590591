"""Merges a user's pod template over the operator's: objects by field, lists by their names."""

from collections.abc import Mapping
from typing import Any

KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "topologySpreadConstraints": "topologyKey",
    "hostAliases": "ip",
}
"""The merge keys of a PodTemplateSpec's lists, as the Kubernetes API documents them."""
APPENDED = {"tolerations", "envFrom"}
"""Lists without a key in which an entry of the user's cannot replace one of ours: theirs are added."""


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`ours` with `theirs` over it; null takes a field of ours away. Neither argument is changed."""
    merged = dict(ours)
    for field, value in theirs.items():
        before = merged.get(field)
        if value is None:
            merged.pop(field, None)
        elif isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[field] = merge(before, value)
        elif isinstance(value, list) and isinstance(before, list) and field in APPENDED:
            merged[field] = [*before, *value]
        elif isinstance(value, list) and isinstance(before, list) and field in KEYS:
            merged[field] = _merge_named(before, value, KEYS[field])
        else:
            merged[field] = value
    return merged


def _merge_named(ours: list[Any], theirs: list[Any], key: str) -> list[Any]:
    """Entries of the same name merged in their place, the user's others behind.

    What is no object, or has no name, is passed on as it is: the API server says what is wrong with it.
    """
    merged = list(ours)
    for entry in theirs:
        name = entry.get(key) if isinstance(entry, Mapping) else None
        place = next((i for i, own in enumerate(merged) if name is not None and own.get(key) == name), None)
        if place is None:
            merged.append(entry)
        elif "valueFrom" in entry or "valueFrom" in merged[place]:
            merged[place] = entry  # a variable has one source: value and valueFrom together are refused
        else:
            merged[place] = merge(merged[place], entry)
    return merged
