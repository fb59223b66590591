"""Many distillations at once, through all stages: a real API server and Job controller, pods that are only played.

How fast the operator is depends on how busy it is kept: `AT_ONCE` are created at once, and before that some one after
the other. Then `MOVING` train, their steps move whenever they are asked, and every tenth of them ends and goes on with
its next stage. How many there are can be chosen: MOVING=5000 python -m benchmarks operator. API server, etcd,
controllers and the played pods share the machine's cores with the operator; created all at once, the runs are only as
fast as these.
"""

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.process import Operator, operator
from tests.operator.simulated import Pods, simulated_pods, succeed

from dmd_api.apps import PROGRESS_PORT
from dmd_api.labels import ATTEMPT, DISTILLATION, STAGE
from dmd_api.stages import Stage

AT_ONCE = int(os.environ.get("AT_ONCE", "200"))
MOVING = int(os.environ.get("MOVING", "1000"))
ALONE = int(os.environ.get("ALONE", "20"))
NAMESPACE = "many"
LIVES = (1.0, 20.0)
"""Seconds that a played pod runs: real ones never all end at once."""
MEMORY_LIMIT_MB = 300
LATENCY_LIMIT = 1.0
MOVING_SECONDS = float(os.environ.get("MOVING_SECONDS", "180"))
MOVING_LIMIT = 4.0
GO_ON = 10
"""Of so many moving runs, one goes on with its next stage while they are followed: real ones train for hours."""


def run() -> dict[str, Any]:
    """Latencies at their 95th percentiles, the operator's memory, and what it asks while all runs train."""
    with tempfile.TemporaryDirectory() as folder:
        control_plane = ControlPlane(Path(folder) / "control-plane")
        try:
            control_plane.start()
            control_plane.stop_scheduler()
            live.install_crd(control_plane.kubectl)
            live.make_namespace(control_plane.kubectl, NAMESPACE)
            with operator(control_plane.kubeconfig, Path(folder)) as process:
                return asyncio.run(_run(control_plane, process))
        finally:
            control_plane.stop()


async def _run(control_plane: ControlPlane, process: Operator) -> dict[str, Any]:
    async with simulated_pods(str(control_plane.kubeconfig)) as pods, _Trainers() as trainers:
        pods.address = trainers.address
        lives = random.Random(0)
        pods.lives = lambda _: lives.uniform(*LIVES)
        names = [f"alone-{i}" for i in range(ALONE)]
        first_pods = [await _one(control_plane, pods, name) for name in names]
        await _until(lambda: len(_complete(pods, names)) == len(names), 300)
        alone = list(_following(pods, names))
        peak = _Peak(process)
        watching = asyncio.create_task(peak.watch())
        names = [f"run-{i}" for i in range(AT_ONCE)]
        started = time.monotonic()
        await asyncio.to_thread(_apply, control_plane, names)
        await _until(lambda: len(_complete(pods, names)) == len(names), 1800)
        seconds = time.monotonic() - started
        decisions = _p95(dict.fromkeys(_decisions(process), 0.0), _decisions(process))
        moving = await _moving(control_plane, pods, trainers, process)
        watching.cancel()
    twice = {key: count for key, count in pods.counts.items() if count > 1}
    following = list(_following(pods, names))
    result = {
        "applyToFirstPodSeconds": _figures(first_pods),
        "jobToNextJobSeconds": _figures(alone),
        "allAtOnce": {
            "runs": AT_ONCE,
            "seconds": round(seconds, 1),
            "jobToNextJobSeconds": _figures(following),
            "decisionSecondsP95AtMost": decisions,
        },
        "memoryMegabytes": {"peak": round(peak.megabytes), "limit": MEMORY_LIMIT_MB},
        "moving": moving,
        "createdTwice": len(twice),
        "errors": process.metric("dmd_operator_errors_total"),
    }
    print(json.dumps(result, indent=1))
    return result


class _Trainers:
    """Answers for rank 0 of every played pod, each at an address of its own, with steps that move all the time."""

    def __init__(self) -> None:
        self._pods: dict[str, tuple[str, int]] = {}
        self._addresses: dict[tuple[str, str, str], str] = {}
        self._asked = 0

    def address(self, pod: dict[str, Any]) -> str:
        labels = pod["metadata"]["labels"]
        key = (labels[DISTILLATION], labels[STAGE], labels[ATTEMPT])
        number = len(self._addresses) + 1
        address = self._addresses.setdefault(key, f"127.1.{number // 250}.{number % 250 + 1}")
        self._pods[address] = (labels[STAGE], int(labels[ATTEMPT]))
        return address

    @property
    def asked(self) -> int:
        """The questions so far."""
        return self._asked

    async def __aenter__(self) -> "_Trainers":
        app = web.Application()
        app.router.add_get("/progress", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", PROGRESS_PORT).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        stage, attempt = self._pods[request.transport.get_extra_info("sockname")[0]]
        self._asked += 1
        step = int(10 * time.monotonic())
        losses = {"distribution_matching": random.random(), "fake_score": random.random()}
        progress = {"stage": stage, "attempt": attempt, "step": step, "total": 10**9, "activity": "training"}
        return web.json_response(progress | {"losses": losses, "etaSeconds": 3600.0, "imagesPerSecond": 100.0})


async def _moving(control_plane: ControlPlane, pods: Pods, trainers: _Trainers, process: Operator) -> dict[str, Any]:
    """What it costs to follow so many runs, all of which train: requests, questions and looks a minute for each."""
    names = [f"moving-{i}" for i in range(MOVING)]
    training: dict[str, list[dict[str, Any]]] = {}

    def ends(pod: dict[str, Any]) -> Any:
        labels = pod["metadata"]["labels"]
        if labels[STAGE] != Stage.DISTILL:
            return succeed(pod)
        training.setdefault(labels[DISTILLATION], []).append(pod)
        return None

    pods.lives, pods.ends = lambda _: 0.0, ends
    await asyncio.to_thread(_apply, control_plane, names)
    await _until(lambda: all((NAMESPACE, name, str(Stage.DISTILL), 1) in pods.first_seen for name in names), 1800)
    await asyncio.sleep(30)  # until their running has been noted
    cpu = psutil.Process(process.process.pid).cpu_times()
    before, asked, started = process.metric("dmd_operator_api_requests_total"), trainers.asked, time.monotonic()
    decisions = _decisions(process)
    going = names[::GO_ON]
    for name in going:
        await asyncio.sleep(MOVING_SECONDS / len(going))
        for pod in training[name]:
            await pods.finish(pod, succeed(pod))
    await _until(lambda: all((NAMESPACE, name, str(Stage.EVALUATE), 1) in pods.jobs_seen for name in going), 300)
    minutes = (time.monotonic() - started) / 60
    requests = process.metric("dmd_operator_api_requests_total") - before
    used = psutil.Process(process.process.pid).cpu_times()
    busy = used.user + used.system - cpu.user - cpu.system
    return {
        "runs": len(names),
        "wentOn": len(going),
        "jobToNextJobSeconds": _figures(list(_following(pods, going, Stage.DISTILL))),
        "decisionSeconds": {"p95AtMost": _p95(decisions, _decisions(process)), "limit": LATENCY_LIMIT},
        "requestsPerMinuteEach": {"figure": round(requests / minutes / len(names), 2), "limit": MOVING_LIMIT},
        "questionsPerMinuteEach": round((trainers.asked - asked) / minutes / len(names), 2),
        "coresUsed": round(busy / minutes / 60, 2),
    }


async def _one(control_plane: ControlPlane, pods: Pods, name: str) -> float:
    """Seconds from the end of `kubectl apply` for one distillation to its first pod."""
    await asyncio.to_thread(control_plane.kubectl.apply, live.manifest(name, NAMESPACE))
    applied = time.monotonic()
    key = (NAMESPACE, name, str(Stage.PREFLIGHT), 1)
    await _until(lambda: key in pods.first_seen, 60)
    return max(pods.first_seen[key] - applied, 0.0)


def _apply(control_plane: ControlPlane, names: list[str]) -> None:
    for begin in range(0, len(names), 50):
        control_plane.kubectl.apply(*(live.manifest(name, NAMESPACE) for name in names[begin : begin + 50]))


def _complete(pods: Pods, names: list[str]) -> set[str]:
    done = {name for _, name, stage, _ in pods.jobs_complete if stage == Stage.EVALUATE}
    return done & set(names)


def _following(pods: Pods, names: list[str], of: Stage | None = None) -> Iterable[float]:
    """Seconds from each Job's completion, as a watch sees it, to the creation of the next stage's Job."""
    wanted, stages = set(names), [str(stage) for stage in Stage]
    for (namespace, name, stage, _), complete in pods.jobs_complete.items():
        if name in wanted and stage != stages[-1] and of in {None, stage}:
            following = (namespace, name, stages[stages.index(stage) + 1], 1)
            yield max(pods.jobs_seen[following] - complete, 0.0)


class _Peak:
    """The most memory that a process held."""

    def __init__(self, process: Operator) -> None:
        self._process, self.megabytes = psutil.Process(process.process.pid), 0.0

    async def watch(self) -> None:
        while True:
            self.megabytes = max(self.megabytes, self._process.memory_info().rss / 1e6)
            await asyncio.sleep(0.2)


def _figures(values: list[float]) -> dict[str, float]:
    p95, median = statistics.quantiles(values, n=20)[-1], statistics.median(values)
    return {"p95": round(p95, 3), "median": round(median, 3), "limit": LATENCY_LIMIT}


def _decisions(process: Operator) -> dict[str, float]:
    """How many decisions took at most so many seconds, by the histogram's bounds."""
    bounds = ("0.02", "0.05", "0.1", "0.2", "0.5", "1.0", "2.0", "5.0", "10.0", "+Inf")
    return {bound: process.metric("dmd_operator_decision_seconds_bucket", le=bound) for bound in bounds}


def _p95(before: dict[str, float], after: dict[str, float]) -> float:
    """The bound of the bucket that the 95th percentile of the decisions in between is in."""
    counts = {bound: after[bound] - before[bound] for bound in after}
    return next(float(bound) for bound, count in counts.items() if count >= 0.95 * counts["+Inf"])


async def _until(condition: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the benchmark's deadline"
        await asyncio.sleep(0.02)
