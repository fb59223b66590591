"""Reads the API server's Jobs and pods into what a decision sees of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from dmd_api.exit_codes import ExitCode
from dmd_api.labels import ATTEMPT, INDEX, STAGE
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_operator import containers
from dmd_operator.observed import DELETED, ObservedJob, ObservedPod

# The reasons of the condition DisruptionTarget, as the Kubernetes documentation lists them.
_DISRUPTIONS = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "DeletionByTaintManager": "node unreachable or tainted",
    "EvictionByEvictionAPI": "evicted, as when a node is drained",
    "DeletionByPodGC": "node gone",
    "TerminationByKubelet": "ended by its kubelet, as when a node shuts down or runs short",
}
_OWN_LIMIT = re.compile(r"exceed(s|ed)\b.*\blimit\b")
"""What a kubelet says when a pod outgrew a limit of its own, and not when its node ran short."""


def observe_job(job: Mapping[str, Any]) -> ObservedJob | None:
    """A Job without its pods; None for one whose labels name no attempt, as others may write them."""
    metadata, status = job["metadata"], job.get("status") or {}
    labels = metadata.get("labels") or {}
    try:
        stage, attempt = Stage(labels.get(STAGE, "")), int(labels.get(ATTEMPT, ""))
    except ValueError:
        return None
    failed = _condition(status, "Failed")
    return ObservedJob(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=stage,
        attempt=attempt,
        created=_time(metadata["creationTimestamp"]),
        complete=_condition(status, "Complete") is not None,
        failed=f"{failed.get('reason', '')}: {failed.get('message', '')}" if failed is not None else None,
        deleting=metadata.get("deletionTimestamp") is not None,
        suspended=bool(job.get("spec", {}).get("suspend")),
        failing=_condition(status, "FailureTarget") is not None,
        completions=job.get("spec", {}).get("completions", 0),
    )


def observe_pod(pod: Mapping[str, Any]) -> ObservedPod | None:
    """A pod of an attempt; None for one without a number. `ObservedPod.at` says whether its grace period is over."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    try:
        index = int((metadata.get("labels") or {}).get(INDEX, ""))
    except ValueError:
        return None
    ended = containers.trainer(status).state("terminated")
    result = _result(ended.get("message"))
    deleted, finished, started = metadata.get("deletionTimestamp"), ended.get("finishedAt"), status.get("startTime")
    return ObservedPod(
        index=index,
        phase=status.get("phase") or "Pending",
        exit_code=ended.get("exitCode"),
        reason=_why(ended) if result is None else None,
        result=result,
        explanation=containers.failure(status) if status.get("phase") == "Failed" else None,
        done_at=_time(finished) if finished and ended.get("exitCode") == ExitCode.DONE else None,
        beside=containers.running(status),
        lost=_lost(metadata, status),
        gone_at=_time(deleted) if deleted is not None else None,
        waiting=_waiting(status),
        starting=containers.starting(status),
        starting_since=_time(started) if started else None,
        ip=status.get("podIP"),
        name=metadata["name"],
    )


def with_pods(
    jobs: Iterable[ObservedJob], pods: Iterable[tuple[str, ObservedPod]], now: datetime
) -> tuple[ObservedJob, ...]:
    """The Jobs with their pods as they are now; pods that no Job owns are nobody's, whatever their labels say.

    Args:
        jobs: as observed.
        pods: each with its owner's uid.
        now: the time.
    """
    of_job: dict[str, list[ObservedPod]] = {}
    for owner, pod in pods:
        of_job.setdefault(owner, []).append(pod.at(now))
    return tuple(
        replace(job, pods=tuple(sorted(of_job.get(job.uid, ()), key=lambda pod: pod.index)))
        for job in sorted(jobs, key=lambda job: job.created)
    )


def _lost(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str | None:
    message = str(status.get("message", ""))
    if status.get("reason") == "Evicted" and _OWN_LIMIT.search(message):
        return None  # as one that is killed for memory: it would happen again
    if disruption := _condition(status, "DisruptionTarget"):
        reason = disruption.get("reason", "")
        said = message or disruption.get("message", "")
        return ": ".join(part for part in (_DISRUPTIONS.get(reason, reason), said) if part)
    if status.get("reason") in {"Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated"}:
        return f"{status['reason']}: {message}"
    # One that was deleted while it worked; what had ended before is not lost.
    deleted = metadata.get("deletionTimestamp") is not None
    return DELETED if deleted and status.get("phase") not in {"Succeeded", "Failed"} else None


def _waiting(status: Mapping[str, Any]) -> str | None:
    if status.get("phase") not in {None, "Pending"}:
        return None
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'not scheduled')}: {condition.get('message', '')}"
    return containers.waiting(status)


def _why(ended: Mapping[str, Any]) -> str | None:
    """The kubelet's own reason, where it says more than that the container ended."""
    reason = ended.get("reason")
    if reason in {None, "Completed", "Error"}:
        return None
    message = ended.get("message")
    return f"{reason}: {message[:500]}" if message else str(reason)


def _result(message: str | None) -> StageResult | None:
    try:
        return StageResult.model_validate_json(message) if message else None
    except ValidationError:
        return None  # another program's last words


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions: list[Mapping[str, Any]] = status.get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def _time(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
