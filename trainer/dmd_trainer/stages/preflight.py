"""Preflight: teacher, data, storage and tracking answer and fit together, and a run's end is rehearsed."""

from collections.abc import Callable
from typing import Any

from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.registry import open_run
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.checks import (
    META,
    check_credentials,
    check_end,
    check_evaluation,
    check_publishing,
    check_real_images,
    check_starting_weights,
    check_storage,
    check_teacher,
)
from dmd_trainer.stages.inputs import read_teacher
from dmd_trainer.tracking.client import TrackedRun, failing_run


def run(context: StageContext) -> dict[str, Any]:
    """Runs all checks; the first that fails ends the stage, and its run in MLflow, with its error.

    No weights of the teacher are loaded: its files' headers say what a small copy of it has to be like.

    Raises:
        BadInputError: what the manifest names is not there or does not fit.
        InfrastructureError: storage or tracking do not answer.
    """
    manifest = context.manifest
    tracked = TrackedRun.of(manifest, context.run_key)
    first: dict[str, Callable[[], object]] = {
        "credentials": lambda: check_credentials(manifest.spec),
        "storage": lambda: check_storage(context),
    }
    teacher: list[Teacher] = []
    then: dict[str, Callable[[], object]] = {
        "the teacher": lambda: teacher.append(read_teacher(context, META)),
        "teacher and manifest": lambda: check_teacher(context, teacher[0]),
        "weights to start from": lambda: check_starting_weights(context, teacher[0]),
        "the run's end": lambda: check_end(context, teacher[0]),
        "the hub": lambda: check_publishing(manifest.spec, teacher[0]),
        "real images": lambda: check_real_images(context, teacher[0]),
        "evaluation": lambda: check_evaluation(context, teacher[0]),
    }
    context.progress.update(unit="checks", total=len(first) + 1 + len(then))
    _check(context, first)
    context.progress.update(activity="checking tracking")
    run_id = open_run(tracked, manifest.registered_model, manifest.model_dump_json(by_alias=True, indent=2))
    context.progress.advance(1)
    with failing_run(tracked, run_id):
        _check(context, then)
    return {"teacher": manifest.spec.teacher.uri, "mlflowRun": run_id}


def _check(context: StageContext, checks: dict[str, Callable[[], object]]) -> None:
    for name, check in checks.items():
        context.progress.update(activity=f"checking {name}")
        context.raise_if_stopped()
        check()
        context.progress.advance(1)
