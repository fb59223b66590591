"""Whole small runs on a real cluster of two nodes, each disturbed at random moments of every stage.

What is done to a run depends on its number alone. Each run is a line of benchmarks/chaos/runs.jsonl; what is there is
not run again, so that a hundred of them, hours, may be made piece by piece. Needs root on Linux, as all nodes do.

CHAOS_RUNS=100 CHAOS_MINUTES=60 python -m benchmarks chaos
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError
from tests.e2e import disturbances
from tests.e2e.runs import apply, attempts, story, undisturbed_weights
from tests.e2e.stack import BUCKET, TEAM, Stack, bring_up
from tests.operator.live import condition, eventually, status

from benchmarks.chaos import report
from benchmarks.chaos.plan import Planned, plan
from dmd_api.status import PHASES

WANTED = int(os.environ.get("CHAOS_RUNS", "100"))
MINUTES = float(os.environ.get("CHAOS_MINUTES", "inf"))
"""After so many, no further run is begun."""
LIMIT = 1200.0
"""Seconds in which a run is over, disturbed or not."""
SMALL: dict[str, Any] = {
    "training": {"generatorUpdates": 100, "batchSize": 8, "learningRate": 1e-4, "checkpointEvery": 20},
    "evaluation": {
        "samples": 100,
        "batchSize": 50,
        "reference": {"uri": "builtin://digits"},
        "features": {"uri": "builtin://digits-classifier"},
    },
    "tracking": {"experiment": "chaos"},
}
OVER = ("Complete", "Failed")
DISK = "32Mi"
"""The scratch folder of each pod, so that it can be filled up."""


def run() -> dict[str, Any]:
    """Makes the runs that are missing, as far as there is time, and returns what all of them come to."""
    started, made = time.monotonic(), report.read()
    numbers = report.missing(made, WANTED)
    if numbers:
        with _stack() as (stack, weights):
            for number in numbers:
                if time.monotonic() - started > 60 * MINUTES:
                    break
                entry = one(stack, number, weights)
                report.write(entry)
                print(json.dumps(entry), flush=True)
    result = report.summary(report.read(), WANTED)
    print(json.dumps(result, indent=1))
    return result


@contextmanager
def _stack() -> Iterator[tuple[Stack, str]]:
    """The stack, and the hash of the weights that every run ends with."""
    with tempfile.TemporaryDirectory() as folder:
        weights = undisturbed_weights(Path(folder) / "undisturbed", **SMALL)
        cluster = Cluster().up()
        try:
            with bring_up(cluster, Path(folder) / "stack") as stack:
                yield stack, weights
        finally:
            cluster.down()


def one(stack: Stack, number: int, weights: str) -> dict[str, Any]:
    """One run, from its creation until nothing is left of it.

    Returns:
        Its line of the report; `wrong` has what must not be, and is empty where nothing is wrong.
    """
    name = f"chaos-{number}"
    began = time.monotonic()
    apply(stack, name, scratch=DISK, **SMALL)
    done = [_disturb(stack, name, planned, began) for planned in plan(number)]
    wrong: list[str] = []
    try:
        found = eventually(lambda: _over(stack, name), f"{name} is over", max(60.0, LIMIT - (time.monotonic() - began)))
    except AssertionError:
        found = status(stack.kubectl, name, TEAM)
        wrong.append(f"not over after {LIMIT:.0f} s: {story(stack, name)}")
    entry: dict[str, Any] = {"number": number, "outcome": found.get("phase", "none"), "disturbances": done}
    if found.get("phase") == "Complete":
        entry["weights"] = stack.report(name)["generatorSha256"]
        if entry["weights"] != weights:
            wrong.append(f"other weights than the undisturbed run's {weights}")
        if (versions := _registered(stack, name)) != 1:
            wrong.append(f"registered {versions} times")
    elif found.get("phase") == "Failed":
        entry["reason"] = "{reason}: {message}".format(**condition(found, "Failed"))
    told = attempts(stack, name)
    entry |= {"attempts": told, "failures": found.get("failures"), "seconds": round(time.monotonic() - began)}
    if twice := {attempt for attempt in told if told.count(attempt) > 1}:
        wrong.append(f"begun twice: {sorted(twice)}")
    return {**entry, "wrong": [*wrong, *_deleted(stack, name)]}


def _over(stack: Stack, name: str) -> dict[str, Any] | None:
    found = status(stack.kubectl, name, TEAM)
    return found if found.get("phase") in OVER else None


def _disturb(stack: Stack, name: str, planned: Planned, began: float) -> dict[str, Any]:
    """Waits for the moment, and disturbs."""
    order = [*PHASES.values(), *OVER]
    wanted = order.index(planned.phase)

    def is_there() -> bool:
        phase = status(stack.kubectl, name, TEAM).get("phase")
        return phase in order and order.index(phase) >= wanted

    try:
        eventually(is_there, f"{name} is {planned.phase}", LIMIT)
    except AssertionError:
        return {"what": planned.what, "phase": "never came", "at": round(time.monotonic() - began), "told": ""}
    time.sleep(planned.after)
    phase = eventually(lambda: status(stack.kubectl, name, TEAM).get("phase"), f"{name} has a phase")
    at = round(time.monotonic() - began, 1)
    try:
        told = disturbances.ALL[planned.what](stack, name, random.Random(planned.seed))
    except (AssertionError, ClusterError) as error:  # an API server that is not back yet, a wish that is not followed
        told = f"could not be done: {str(error)[-200:]}"
    return {"what": planned.what, "phase": phase, "at": at, "told": told}


def _registered(stack: Stack, name: str) -> int:
    """How many versions the model of a run has."""
    from mlflow import MlflowClient

    return len(MlflowClient(stack.mlflow.url).search_model_versions(f"name = '{name}'"))


def _deleted(stack: Stack, name: str) -> list[str]:
    """Deletes a run; what of it stays where nothing should."""
    wrong = []
    try:
        stack.kubectl("delete", "dmd", name, "-n", TEAM, "--timeout=60s")
        eventually(lambda: not disturbances.left_behind(stack, name), "its children are gone", 120)
    except (AssertionError, ClusterError) as error:
        wrong.append(f"left behind: {str(error)[-500:]}")
    uploads = stack.s3().list_multipart_uploads(Bucket=BUCKET).get("Uploads") or []
    if unfinished := [upload["Key"] for upload in uploads if f"runs/{name}-" in upload["Key"]]:
        wrong.append(f"uploads without an end: {unfinished}")
    return wrong
