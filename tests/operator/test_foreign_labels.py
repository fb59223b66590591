"""What others write on Jobs and pods decides nothing."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dmd_api.labels import ATTEMPT, CONTAINER, DISTILLATION, INDEX, JOB_NAME, STAGE
from dmd_operator.observe import observe_job, observe_pod, with_pods

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OURS = {DISTILLATION: "run", STAGE: "distill", ATTEMPT: "2"}


def job(**labels: str) -> dict[str, Any]:
    metadata = {"name": "run-distill-2", "uid": "job-uid", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": {**metadata, "labels": {**OURS, **labels}}, "spec": {"completions": 1}}


def pod(**labels: str) -> dict[str, Any]:
    ours = {**OURS, JOB_NAME: "run-distill-2", INDEX: "0"}
    terminated = {"exitCode": 2, "message": '{"stage": "distill", "result": {"fid": NaN, "modelVersion": 1e999}}'}
    container = {"name": CONTAINER, "state": {"terminated": terminated}}
    status = {"phase": "Failed", "containerStatuses": [container]}
    return {"metadata": {"name": "pod", "uid": "pod-uid", "labels": {**ours, **labels}}, "status": status}


def test_a_pod_with_the_labels_of_an_attempt_is_none_of_its_pods() -> None:
    observed, stranger = observe_job(job()), observe_pod(pod())
    assert observed is not None
    assert stranger is not None
    (alone,) = with_pods([observed], [("another-job's-uid", stranger)], NOW)
    assert alone.pods == ()
    (own,) = with_pods([observed], [("job-uid", stranger)], NOW)
    assert [p.exit_code for p in own.pods] == [2]


@pytest.mark.parametrize(
    "labels",
    [{STAGE: "lunch"}, {STAGE: ""}, {ATTEMPT: "first"}, {ATTEMPT: ""}, {ATTEMPT: "1.5"}],
    ids=lambda labels: "-".join(f"{v}" for v in labels.values()),
)
def test_a_job_whose_labels_name_no_attempt_is_none(labels: dict[str, str]) -> None:
    assert observe_job(job(**labels)) is None
    assert observe_job({**job(), "metadata": {**job()["metadata"], "labels": None}}) is None


@pytest.mark.parametrize("number", ["", "one", "1e3"])
def test_a_pod_without_a_number_is_none(number: str) -> None:
    assert observe_pod(pod(**{INDEX: number})) is None
