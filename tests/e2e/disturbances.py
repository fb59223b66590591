"""What is done to a run, or to what it lives on: each one is over when its function returns, and all is back then."""

import json
import random
import time
from collections.abc import Callable
from typing import Any

from dmd_api.labels import DISTILLATION
from tests.cluster.processes import ClusterError
from tests.e2e.stack import SYSTEM, TEAM, Stack
from tests.operator.live import eventually, status

Disturb = Callable[[Stack, str, random.Random], str]
"""Disturbs a run of the stack by its name, and says what was done."""
OUTAGE = (3.0, 30.0)
"""Seconds that something is away; what is tested is an outage of that length."""
FULL = "/scratch/full"


def delete_a_pod(stack: Stack, name: str, choose: random.Random) -> str:
    return _delete_one(stack, name, "pods", choose, f"--grace-period={choose.choice((0, 1, 30))}")


def delete_a_job(stack: Stack, name: str, choose: random.Random) -> str:
    return _delete_one(stack, name, "jobs", choose, f"--cascade={choose.choice(('background', 'foreground'))}")


def delete_a_service(stack: Stack, name: str, choose: random.Random) -> str:
    return _delete_one(stack, name, "services", choose)


def delete_the_lease(stack: Stack, name: str, choose: random.Random) -> str:
    return stack.kubectl("delete", "leases", "-n", SYSTEM, "--all").strip()


def kill_the_operator(stack: Stack, name: str, choose: random.Random) -> str:
    """Every replica at once, or one of them, which may be the leader."""
    pods = stack.kubectl.get("pods", "-n", SYSTEM)["items"]
    chosen = choose.sample(pods, choose.randint(1, len(pods))) if pods else []
    names = [pod["metadata"]["name"] for pod in chosen]
    if names:
        stack.kubectl("delete", "pods", "-n", SYSTEM, *names, "--grace-period=0", "--force", "--ignore-not-found")
    return f"{len(names)} of {len(pods)} replicas"


def stop_a_kubelet(stack: Stack, name: str, choose: random.Random) -> str:
    """Longer than the cluster's patience with a node, or shorter."""
    node, seconds = choose.choice(stack.cluster.nodes), choose.uniform(*OUTAGE)
    node.stop_kubelet()
    time.sleep(seconds)
    node.start_kubelet()
    return f"{node.name}, {seconds:.0f} s"


def stop_the_api_server(stack: Stack, name: str, choose: random.Random) -> str:
    seconds = choose.uniform(*OUTAGE)
    stack.cluster.control_plane.restart_api_server(pause=seconds)
    return f"{seconds:.0f} s"


def stop_mlflow(stack: Stack, name: str, choose: random.Random) -> str:
    seconds = choose.uniform(*OUTAGE)
    stack.stop_mlflow()
    time.sleep(seconds)
    stack.start_mlflow()
    return f"{seconds:.0f} s"


def keep_s3_away(stack: Stack, name: str, choose: random.Random) -> str:
    seconds = choose.uniform(*OUTAGE)
    stack.s3_away = True
    time.sleep(seconds)
    stack.s3_away = False
    return f"503 for {seconds:.0f} s"


def slow_s3_down(stack: Stack, name: str, choose: random.Random) -> str:
    seconds, stack.s3_delay = choose.uniform(*OUTAGE), choose.uniform(0.5, 3.0)
    delay = stack.s3_delay
    time.sleep(seconds)
    stack.s3_delay = 0.0
    return f"{delay:.1f} s an answer for {seconds:.0f} s"


def fill_the_disk(stack: Stack, name: str, choose: random.Random) -> str:
    """The scratch folder of one pod, whose size chaos.py limits."""
    seconds = choose.uniform(*OUTAGE)
    running = [pod for pod in _children(stack, name, "pods") if pod["status"]["phase"] == "Running"]
    if not running:
        return "no pod was running"
    inside = ("exec", "-n", TEAM, choose.choice(running)["metadata"]["name"], "--", "sh", "-c")
    try:
        stack.kubectl(*inside, f"cat /dev/zero > {FULL} 2>/dev/null; true", timeout=30)
        time.sleep(seconds)
        stack.kubectl(*inside, f"rm -f {FULL}", timeout=30)
    except ClusterError:
        return "the pod went"
    return f"{seconds:.0f} s"


def suspend_and_resume(stack: Stack, name: str, choose: random.Random) -> str:
    seconds = choose.uniform(0, OUTAGE[0])
    set_suspend(stack, name, True)
    phases = {"Suspended", "Complete", "Failed"}
    try:
        eventually(lambda: status(stack.kubectl, name, TEAM).get("phase") in phases, f"{name} is suspended")
        time.sleep(seconds)
    finally:
        set_suspend(stack, name, False)
    return f"{seconds:.0f} s"


ALL: dict[str, Disturb] = {
    what.__name__: what
    for what in (
        delete_a_pod, delete_a_job, delete_a_service, delete_the_lease, kill_the_operator, stop_a_kubelet,
        stop_the_api_server, stop_mlflow, keep_s3_away, slow_s3_down, fill_the_disk, suspend_and_resume,
    )
}  # fmt: skip


def set_suspend(stack: Stack, name: str, value: bool) -> None:
    patch = json.dumps({"spec": {"suspend": value}})
    stack.kubectl("patch", "dmd", name, "-n", TEAM, "--type=merge", "-p", patch)


def left_behind(stack: Stack, name: str) -> list[str]:
    """The children of a run that are there."""
    kinds = ("pods", "jobs", "services")
    return [f"{kind}/{child['metadata']['name']}" for kind in kinds for child in _children(stack, name, kind)]


def _children(stack: Stack, name: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.kubectl.get(kind, "-n", TEAM, "-l", f"{DISTILLATION}={name}")["items"]
    return found


def _delete_one(stack: Stack, name: str, kind: str, choose: random.Random, *options: str) -> str:
    found = sorted(child["metadata"]["name"] for child in _children(stack, name, kind))
    if not found:
        return "there was none"
    chosen = choose.choice(found)
    # Nothing is waited for: a pod whose kubelet is away would take as long as that.
    stack.kubectl("delete", kind, chosen, "-n", TEAM, "--ignore-not-found", "--wait=false", *options)
    return " ".join((chosen, *options))
