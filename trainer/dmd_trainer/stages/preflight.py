"""Preflight: teacher, data, storage and tracking answer and fit together, before any pair is made."""

from collections.abc import Callable
from typing import Any

from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.registry import check_reachable
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.checks import (
    check_credentials,
    check_evaluation,
    check_real_images,
    check_starting_weights,
    check_storage,
    check_teacher,
)
from dmd_trainer.stages.inputs import read_teacher


def run(context: StageContext) -> dict[str, Any]:
    """Runs all checks; the first that fails ends the stage with its error.

    Raises:
        BadInputError: what the manifest names is not there or does not fit.
        InfrastructureError: storage or tracking do not answer.
    """
    spec = context.manifest.spec
    teacher: list[Teacher] = []

    def load() -> None:
        teacher.append(read_teacher(context))

    checks: list[tuple[str, Callable[[], object]]] = [
        ("credentials", lambda: check_credentials(spec)),
        ("storage", lambda: check_storage(context)),
        ("tracking", lambda: check_reachable(spec.tracking.uri or "")),
        ("the teacher", load),
        ("teacher and manifest", lambda: check_teacher(context, teacher[0])),
        ("weights to start from", lambda: check_starting_weights(context, teacher[0])),
        ("real images", lambda: check_real_images(context, teacher[0])),
        ("evaluation", lambda: check_evaluation(context, teacher[0])),
    ]
    context.progress.update(unit="checks", total=len(checks))
    for name, check in checks:
        context.progress.update(activity=f"checking {name}")
        context.raise_if_stopped()
        check()
        context.progress.advance(1)
    return {"teacher": spec.teacher.uri, "teacherDigest": teacher[0].digest[:12]}
