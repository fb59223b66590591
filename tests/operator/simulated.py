"""Pods without a kubelet: the Job controller is real, what pods do is written into their status."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio import client, config, watch

from dmd_api.labels import ATTEMPT, CONTAINER, DISTILLATION, STAGE
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage

Ends = Callable[[dict[str, Any]], tuple[int, StageResult] | None]
"""How a pod ends, from the pod: its exit code and last words; None: it runs on."""


def succeed(pod: dict[str, Any]) -> tuple[int, StageResult]:
    """Every pod does its work; rank 0 of evaluate reports a model version."""
    stage = Stage(pod["metadata"]["labels"][STAGE])
    return 0, StageResult(stage=stage, result={"modelVersion": "1"} if stage is Stage.EVALUATE else {})


@dataclass
class Pods:
    """Plays the kubelet for every trainer pod.

    Attributes:
        api: the client.
        ends: how they end.
        lives: for how many seconds they run before that.
        address: where each can be asked for its progress.
        first_seen: when a Job's first pod appeared, by (namespace, distillation, stage, attempt), `time.monotonic`.
        jobs_seen: when a Job appeared, likewise.
        jobs_complete: when it had its condition Complete, likewise.
        counts: how often each of them was created.
    """

    api: client.ApiClient
    ends: Ends = succeed
    lives: Callable[[dict[str, Any]], float] = lambda _: 0.0
    address: Callable[[dict[str, Any]], str] = lambda _: "127.0.0.1"
    first_seen: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    jobs_seen: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    jobs_complete: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    counts: dict[tuple[str, str, str, int], int] = field(default_factory=lambda: defaultdict(int))

    async def play(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(client.CoreV1Api(self.api).list_pod_for_all_namespaces, self._pod, tasks))
            tasks.create_task(self._watch(client.BatchV1Api(self.api).list_job_for_all_namespaces, self._job, tasks))

    async def _watch(self, listing: Any, handle: Any, tasks: asyncio.TaskGroup) -> None:
        seen: set[str] = set()
        while True:
            try:
                async with watch.Watch() as events:
                    async for event in events.stream(listing, label_selector=DISTILLATION, timeout_seconds=300):
                        if event["raw_object"]["metadata"].get("ownerReferences"):  # not a stranger's
                            handle(event["type"], event["raw_object"], seen, tasks)
            except (client.ApiException, aiohttp.ClientError, OSError):
                await asyncio.sleep(0.1)

    def _job(self, kind: str, job: dict[str, Any], seen: set[str], tasks: asyncio.TaskGroup) -> None:
        key, uid = _key(job), job["metadata"]["uid"]
        if kind == "DELETED":
            return
        if uid not in seen:
            seen.add(uid)
            self.jobs_seen.setdefault(key, time.monotonic())
            self.counts[key] += 1
        conditions = (job.get("status") or {}).get("conditions") or []
        if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions):
            self.jobs_complete.setdefault(key, time.monotonic())

    def _pod(self, kind: str, pod: dict[str, Any], seen: set[str], tasks: asyncio.TaskGroup) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED" or uid in seen or pod["metadata"].get("deletionTimestamp"):
            return
        seen.add(uid)
        if "nvidia.com/gpu" in str(pod["spec"]["containers"][0].get("resources")):
            return  # nobody has one here: what the scheduler says is real
        self.first_seen.setdefault(_key(pod), time.monotonic())
        tasks.create_task(self._live(pod))

    async def _live(self, pod: dict[str, Any]) -> None:
        await self._write(pod, "Running", {"running": {"startedAt": _now()}})
        end = self.ends(pod)
        if end is None:
            return
        await asyncio.sleep(self.lives(pod))
        await self.finish(pod, end)

    async def finish(self, pod: dict[str, Any], end: tuple[int, StageResult]) -> None:
        """Ends a pod with an exit code and last words; also one of which `ends` said that it runs on."""
        code, result = end
        terminated = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "finishedAt": _now()}
        terminated |= {"startedAt": _now(), "message": result.to_termination_message()}
        await self._write(pod, "Succeeded" if code == 0 else "Failed", {"terminated": terminated})

    async def _write(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        container = {"name": CONTAINER, "state": state, "ready": False, "restartCount": 0, "image": "", "imageID": ""}
        while True:
            try:
                await client.CoreV1Api(self.api).patch_namespaced_pod_status(
                    pod["metadata"]["name"],
                    pod["metadata"]["namespace"],
                    {"status": {"phase": phase, "podIP": self.address(pod), "containerStatuses": [container]}},
                    _content_type="application/merge-patch+json",
                )
            except client.ApiException as error:
                if error.status == 404:  # it was deleted meanwhile
                    return
            except (aiohttp.ClientError, OSError):
                pass  # an API server that restarts
            else:
                return
            await asyncio.sleep(0.2)


@asynccontextmanager
async def simulated_pods(kubeconfig: str, ends: Ends = succeed) -> AsyncIterator[Pods]:
    """Pods that are played for as long as the context lasts."""
    configuration = client.Configuration()
    await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        pods = Pods(api, ends)
        playing = asyncio.create_task(pods.play())
        try:
            yield pods
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)


def _key(child: dict[str, Any]) -> tuple[str, str, str, int]:
    metadata = child["metadata"]
    labels = metadata["labels"]
    return metadata["namespace"], labels[DISTILLATION], labels[STAGE], int(labels[ATTEMPT])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
