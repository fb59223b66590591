"""A small distillation for tests that disturb it: seconds of training, and weights that only its manifest decides."""

from typing import Any

from dmd_api.labels import ATTEMPT, STAGE
from tests.e2e.stack import TEAM, Stack, on_this_machine
from tests.operator import live
from tests.operator.live import eventually, status

UPDATES = 300
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
            "sampleEvery": 200,
        },
        "evaluation": {
            "samples": 100,
            "every": 200,
            "batchSize": 50,
            "reference": {"uri": "builtin://digits"},
            "features": {"uri": "builtin://digits-classifier"},
        },
        "workers": {"nodes": 2},
        "tracking": {"experiment": "disturbed"},
    },
}


def apply(stack: Stack, name: str, **spec: Any) -> None:
    manifest = on_this_machine({**SMALL, "metadata": {"name": name, "namespace": TEAM}})
    manifest["spec"] |= spec
    stack.kubectl.apply(manifest)


def wait_until_complete(stack: Stack, name: str, seconds: int = 600) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = status(stack.kubectl, name, TEAM)
        return found if found.get("phase") in {"Complete", "Failed"} else None

    found = eventually(over, f"{name} is over: {story(stack, name)}", seconds)
    assert found["phase"] == "Complete", story(stack, name)
    return found


def story(stack: Stack, name: str) -> str:
    told = "\n".join(f"{reason}: {note}" for reason, note in live.events(stack.kubectl, name, TEAM))
    return f"{told}\n{live.describe(status(stack.kubectl, name, TEAM))}"


def in_the_middle(stack: Stack, name: str) -> dict[str, Any]:
    """The status of a run that has trained some steps since its first checkpoint, and has many before it."""

    def trains() -> dict[str, Any] | None:
        found = status(stack.kubectl, name, TEAM)
        assert found.get("phase") not in {"Complete", "Failed"}, story(stack, name)
        middle = found.get("phase") == "Distilling" and found.get("checkpointStep") and found.get("step")
        return found if middle else None

    found = eventually(trains, f"{name} trains", 600)
    assert found["step"] < UPDATES, "it was too fast to be disturbed"
    return found


def workers(stack: Stack, name: str, attempt: int = 1) -> dict[int, dict[str, Any]]:
    """The pods of an attempt at distilling, by their index."""
    labels = f"dmd-operator.io/distillation={name},{STAGE}=distill,{ATTEMPT}={attempt}"
    pods = stack.kubectl.get("pods", "-n", TEAM, "-l", labels)["items"]
    return {int(p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): p for p in pods}
