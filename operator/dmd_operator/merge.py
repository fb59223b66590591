"""Merges a user's pod template over the operator's: objects by field, lists by the API's own keys."""

from collections.abc import Mapping
from typing import Any

KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "hostAliases": ("ip",),
}
"""The keys by which server-side apply knows the entries of a PodTemplateSpec's lists."""
DEFAULTS = {"protocol": "TCP"}
"""The values of keys that an entry may leave out."""
REPLACED = {"env", "volumes"}
"""Lists whose entries have one source, which another takes the place of: both together would be refused."""
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
            merged[field] = _merge_lists(before, value, field)
        else:
            merged[field] = value
    return merged


def _merge_lists(ours: list[Any], theirs: list[Any], field: str) -> list[Any]:
    """Entries of the same key merged in their place, the user's others behind.

    What is no object, has no key or repeats one is passed on as it is: the API server says what is wrong with it.
    """
    places = {_key(entry, field): place for place, entry in enumerate(ours)}
    merged = list(ours)
    for entry in theirs:
        place = places.pop(_key(entry, field), None)
        if place is None:
            merged.append(entry)
        else:
            merged[place] = entry if field in REPLACED else merge(ours[place], entry)
    return merged


def _key(entry: Any, field: str) -> tuple[str, ...]:
    """The values of the keys of an entry; empty for one without."""
    values = [entry.get(key, DEFAULTS.get(key)) if isinstance(entry, Mapping) else None for key in KEYS[field]]
    return () if None in values else tuple(map(str, values))
