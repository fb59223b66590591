"""A small distillation for tests that disturb it: seconds of training, and weights that only its manifest decides."""

import json
from pathlib import Path
from typing import Any

from dmd_api.labels import ATTEMPT, STAGE
from dmd_api.runtime import Stage
from tests.e2e.stack import TEAM, Stack, on_this_machine
from tests.operator import live
from tests.operator.live import eventually, status
from tests.stages import RUN_KEY, run_stage

UPDATES = 500
SMALL: dict[str, Any] = {
    "apiVersion": "dmd-operator.io/v1alpha1",
    "kind": "DMDDistillation",
    "spec": {
        "teacher": {"uri": "builtin://digits-teacher"},
        "data": {"classLabels": {"count": 10}},
        "method": {"regression": {"pairs": 64, "solver": "Heun", "solverSteps": 3, "loss": "L2"}},
        "training": {
            "generatorUpdates": UPDATES,
            "batchSize": 8,
            "learningRate": 1e-4,
            "checkpointEvery": 20,
            "sampleEvery": 250,
        },
        "evaluation": {
            "samples": 100,
            "every": 250,
            "batchSize": 50,
            "reference": {"uri": "builtin://digits"},
            "features": {"uri": "builtin://digits-classifier"},
        },
        "workers": {"nodes": 2},
        "tracking": {"experiment": "disturbed"},
    },
}


def apply(stack: Stack, name: str, scratch: str = "", **spec: Any) -> None:
    """Creates the run; `spec` replaces whole fields, and `scratch` is the size of its pods' scratch folder."""
    manifest = on_this_machine({**SMALL, "metadata": {"name": name, "namespace": TEAM}}, scratch)
    manifest["spec"] |= spec
    stack.kubectl.apply(manifest)


def wait_until_complete(stack: Stack, name: str, seconds: int = 1500) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = status(stack.kubectl, name, TEAM)
        return found if found.get("phase") in {"Complete", "Failed"} else None

    found = eventually(over, f"{name} is over: {story(stack, name)}", seconds)
    assert found["phase"] == "Complete", story(stack, name)
    return found


def story(stack: Stack, name: str) -> str:
    told = "\n".join(f"{reason}: {note}" for reason, note in live.events(stack.kubectl, name, TEAM))
    return f"{told}\n{live.describe(status(stack.kubectl, name, TEAM))}"


def undisturbed_weights(folder: Path, **spec: Any) -> str:
    """The hash of the weights that every run of this manifest ends with, from its stages run on this machine."""
    manifest = {**SMALL, "spec": {**SMALL["spec"], **spec}, "metadata": {"name": "undisturbed"}}
    for stage in (Stage.PREPARE, Stage.DISTILL, Stage.EVALUATE):
        result = run_stage(stage, manifest, folder, processes=SMALL["spec"]["workers"]["nodes"])
        assert result.error is None, (stage, result.error)
    report = json.loads((folder / "storage" / RUN_KEY / "report.json").read_text())
    weights: str = report["generatorSha256"]
    return weights


def trains_on(stack: Stack, name: str, past: int = 0) -> None:
    """Waits until a run has trained beyond a checkpoint that is newer than step `past`."""

    def trained() -> bool:
        found = status(stack.kubectl, name, TEAM)
        assert found.get("phase") not in {"Complete", "Failed"}, story(stack, name)
        step, checkpoint = (found.get(field) or 0 for field in ("step", "checkpointStep"))
        assert step < UPDATES, "it was too fast to be disturbed"
        return found.get("phase") == "Distilling" and past < checkpoint < step

    eventually(trained, f"{name} trains on from a checkpoint after step {past}", 600)


def checkpoint_of(stack: Stack, name: str) -> int:
    """The step of the newest checkpoint that the status knows of; 0 before the first."""
    step: int = status(stack.kubectl, name, TEAM).get("checkpointStep") or 0
    return step


def attempts(stack: Stack, name: str) -> list[str]:
    """Every attempt that was created, oldest first: `distill: attempt 1`."""
    return [note for reason, note in live.events(stack.kubectl, name, TEAM) if reason == "AttemptCreated"]


def disruptions(stack: Stack, name: str) -> list[str]:
    """What ended attempts without being counted against the run, oldest first."""
    return [note for reason, note in live.events(stack.kubectl, name, TEAM) if reason == "Disrupted"]


def workers(stack: Stack, name: str, attempt: int = 1) -> dict[int, dict[str, Any]]:
    """The pods of an attempt at distilling, by their index."""
    labels = f"dmd-operator.io/distillation={name},{STAGE}=distill,{ATTEMPT}={attempt}"
    pods = stack.kubectl.get("pods", "-n", TEAM, "-l", labels)["items"]
    return {int(p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): p for p in pods}


def uids_of_workers(stack: Stack, name: str, attempt: int = 1) -> dict[int, str]:
    """Which pods they are: others of the same name have others."""
    return {index: pod["metadata"]["uid"] for index, pod in workers(stack, name, attempt).items()}
