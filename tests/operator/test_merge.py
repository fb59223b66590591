"""A user's pod template over ours."""

from typing import Any

import pytest

from dmd_operator.merge import merge


@pytest.mark.parametrize(
    ("ours", "theirs", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}),
        ({"tolerations": [1]}, {"tolerations": [2]}, {"tolerations": [1, 2]}),
        (
            {"containers": [{"name": "trainer", "image": "x", "args": ["a"]}]},
            {"containers": [{"name": "sidecar"}, {"name": "trainer", "image": "y"}]},
            {"containers": [{"name": "trainer", "image": "y", "args": ["a"]}, {"name": "sidecar"}]},
        ),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]},
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
            {
                "env": [
                    {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "B", "value": "1"},
                ]
            },
        ),
        (
            {"volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}]},
            {"volumeMounts": [{"mountPath": "/data", "name": "tmp"}]},
            {"volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}, {"mountPath": "/data", "name": "tmp"}]},
        ),
        (
            {"ports": [{"containerPort": 9400}, {"containerPort": 53}]},
            {"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 9400, "name": "progress"}]},
            {
                "ports": [
                    {"containerPort": 9400, "name": "progress"},
                    {"containerPort": 53},
                    {"containerPort": 53, "protocol": "UDP"},
                ]
            },
        ),
        (
            {"volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]},
            {"volumes": [{"name": "scratch", "hostPath": {"path": "/nvme"}}]},
            {"volumes": [{"name": "scratch", "hostPath": {"path": "/nvme"}}, {"name": "tmp", "emptyDir": {}}]},
        ),
        (
            {"containers": [{"name": "a", "image": "x"}]},
            {"containers": [{"name": "a", "image": "y"}, {"name": "a", "image": "z"}, {"name": "b"}, {"name": "b"}]},
            {"containers": [{"name": "a", "image": "y"}, {"name": "a", "image": "z"}, {"name": "b"}, {"name": "b"}]},
        ),
        ({"containers": [{"name": "a"}]}, {"containers": ["nonsense"]}, {"containers": [{"name": "a"}, "nonsense"]}),
        ({"containers": [{"name": "a"}]}, {"containers": "nonsense"}, {"containers": "nonsense"}),
    ],
)
def test_merge(ours: dict[str, Any], theirs: dict[str, Any], merged: dict[str, Any]) -> None:
    before = repr((ours, theirs))
    assert merge(ours, theirs) == merged
    assert repr((ours, theirs)) == before
