"""Conditions and events hold what pods and nodes said, and steer no terminal; the ones that matter come first."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from dmd_api.errors import BadInputError
from dmd_api.status import RunStatus
from dmd_operator.cluster import Cluster
from dmd_operator.conditions import mark
from dmd_operator.decision import Event
from dmd_operator.manifests import read_manifest
from tests.awkward import AWKWARD, steers
from tests.conftest import MANIFEST

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = {**MANIFEST, "metadata": {"name": "run", "namespace": "team", "uid": "u", "resourceVersion": "1"}}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_a_condition_keeps_its_lines_and_nothing_that_steers(text: str) -> None:
    status = mark(RunStatus(), "Failed", "True", text, f"worker 0: {text}\nend", now=NOW, generation=1)
    (condition,) = status.conditions
    assert steers(condition.message) == steers(condition.reason) == []
    assert condition.message.endswith("\nend")
    assert "\n" not in condition.reason
    status.model_dump_json()


class Created:
    """An API server that takes everything."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []

    async def create(self, plural: str, namespace: str, body: dict[str, Any]) -> None:
        self.objects.append(body)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_an_event_is_neutral_and_short_enough(text: str) -> None:
    cluster, created = object.__new__(Cluster), Created()
    cluster._objects = created  # type: ignore[assignment]
    asyncio.run(cluster.report(RESOURCE, Event(text, f"{text} " * 300, warning=True)))
    (event,) = created.objects
    assert steers(event["note"]) == steers(event["reason"]) == steers(event["action"]) == []
    assert 0 < len(event["note"].encode()) <= 1024


def test_a_default_with_a_password_that_a_run_began_with_is_named_and_not_shown() -> None:
    from dmd_api.defaults import Defaults

    status = RunStatus(resolved={"tracking": {"uri": "https://user:hunter2@mlflow"}})
    with pytest.raises(BadInputError, match=r"the operator's default tracking\.uri .* holds a user name") as caught:
        read_manifest(RESOURCE, status, Defaults())
    assert "hunter2" not in caught.value.message


def test_describe_begins_with_how_the_run_is() -> None:
    status = RunStatus()
    for kind in ("PreflightPassed", "Failed", "Healthy", "Suspended"):
        status = mark(status, kind, "False", "Because", now=NOW, generation=1)
    foreign = status.conditions[0].model_copy(update={"type": "example.com/Audited"})
    status = status.model_copy(update={"conditions": (foreign, *status.conditions)})
    status = mark(status, "Healthy", "True", "Running", now=NOW, generation=1)
    found = [condition.type for condition in status.conditions]
    assert found == ["Healthy", "Suspended", "Failed", "PreflightPassed", "example.com/Audited"]


def test_times_are_written_as_kubernetes_writes_them() -> None:
    at = datetime(2026, 1, 1, 13, 0, 59, 999_999, tzinfo=timezone(timedelta(hours=1)))
    written = RunStatus(start_time=at).to_resource()
    assert written["startTime"] == "2026-01-01T12:00:59Z"
    assert RunStatus.model_validate(written).to_resource() == written
