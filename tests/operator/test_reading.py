"""Objects that are nested or filled without bounds."""

import json
from typing import Any

import pytest

from dmd_operator.reading import DEEPEST, LARGEST, REFUSED, kept, parse
from dmd_operator.stored_status import read_status

METADATA = {"name": "run", "namespace": "team", "uid": "u", "resourceVersion": "3", "generation": 1}


def nested(levels: int) -> str:
    """Objects and lists in turn, with brackets in strings that count for nothing."""
    return '{"a\\"[": [' * (levels // 2) + "1" + "]}" * (levels // 2)


def resource(**parts: str) -> bytes:
    fields = {"apiVersion": '"v"', "kind": '"k"', "metadata": json.dumps(METADATA), **parts}
    return ("{" + ", ".join(f'"{field}": {value}' for field, value in fields.items()) + "}").encode()


@pytest.mark.parametrize("levels", [1000, 10_000])
def test_what_is_too_deep_for_python_is_read_without_its_depths(levels: int) -> None:
    text = b'{"items": [%s, {"metadata": {"name": "innocent", "x": "]}\\"{"}}]}' % nested(levels).encode()
    first, second = parse(text)["items"]
    assert second == {"metadata": {"name": "innocent", "x": ']}"{'}}
    assert first['a"['], "what is at the top is there"


def test_what_is_not_too_deep_is_read_as_it_is() -> None:
    value = {"a": [1, 2.5, None, True, 'x\\"]'], "b": {"c": {}}}
    assert parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize("levels", [DEEPEST + 2, 1000, 10_000])
def test_a_resource_that_is_too_deep_is_refused_by_its_field(levels: int) -> None:
    spec = '{"workers": {"podTemplate": {"spec": ' + nested(levels) + "}}}"
    found = kept(parse(resource(spec=spec, status='{"attempt": 3}')))
    assert found[REFUSED] == {"spec": f"spec.workers.podTemplate is nested more than {DEEPEST} levels deep"}
    assert "spec" not in found
    assert (found["metadata"], found["status"]) == (METADATA, {"attempt": 3})


def test_of_a_status_that_is_too_deep_what_is_not_is_read() -> None:
    found = kept(parse(resource(spec="{}", status='{"attempt": 3, "resolved": ' + nested(200) + "}")))
    assert REFUSED not in found
    status, unreadable = read_status(found["status"])
    assert (status.attempt, status.resolved, unreadable) == (3, None, ("resolved",))


def test_a_status_that_is_too_large_elsewhere_is_refused() -> None:
    found = kept(parse(resource(spec="{}", status=json.dumps({"phase": "x" * LARGEST, "resolved": {}}))))
    assert set(found[REFUSED]) == {"status"}
    assert "status" not in found


@pytest.mark.parametrize(
    "spec",
    [
        {"workers": {"podTemplate": ["x"] * LARGEST}},
        {"workers": {"podTemplate": {"x": "y" * LARGEST}}},
        {"workers": {"podTemplate": {"y" * LARGEST: 1}}},
        {"workers": {"podTemplate": [[] for _ in range(LARGEST)]}},
    ],
    ids=["list", "string", "key", "lists"],
)
def test_a_resource_that_is_too_large_is_refused(spec: dict[str, Any]) -> None:
    found = kept({"metadata": METADATA, "spec": spec})
    assert found[REFUSED] == {"spec": f"spec is larger than {LARGEST // 1024} KiB"}


def test_what_others_fill_is_dropped_and_refuses_nothing() -> None:
    metadata = {**METADATA, "annotations": {"x": "y" * LARGEST}, "managedFields": json.loads(nested(500))}
    found = kept({"metadata": metadata, "spec": {"a": 1}})
    assert found == {"metadata": METADATA, "spec": {"a": 1}}


def test_labels_without_end_are_refused_and_what_names_the_resource_stays() -> None:
    labels = {f"label-{i}": "x" * 60 for i in range(10_000)}
    found = kept({"metadata": {**METADATA, "labels": labels}, "spec": {}})
    assert found["metadata"] == METADATA
    assert set(found[REFUSED]) == {"metadata"}
