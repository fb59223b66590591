"""The results of finished stages in a run's storage, which outlive pods, Jobs and whoever watched them."""

from pydantic import ValidationError

from dmd_api.errors import BadInputError
from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_trainer.runtime.storage import Storage


def write_result(storage: Storage, result: StageResult) -> None:
    """Leaves the result of a stage that is done."""
    storage.write(_key(result.stage), result.model_dump_json(indent=1).encode())


def read_result(storage: Storage, stage: Stage, manifest: DMDDistillation) -> StageResult | None:
    """The result of `stage`; None where it is not done, or done for another end than the manifest's."""
    if not storage.exists(_key(stage)):
        return None
    try:
        result = StageResult.model_validate(storage.read_json(_key(stage)))
    except (BadInputError, ValidationError):
        return None  # it is written again
    return None if stage is Stage.EVALUATE and not _same_end(storage, manifest) else result


def _same_end(storage: Storage, manifest: DMDDistillation) -> bool:
    """Whether what was measured was held against the manifest's gates, and is on the hub where it has to be."""
    wanted = [gate.model_dump() for gate in manifest.spec.gates]
    hub = manifest.spec.publish.hugging_face
    try:
        report = storage.read_json("report.json")
        gates = report["gates"]
        if [{field: gate.get(field) for field in ("metric", "max", "min")} for gate in gates] != wanted:
            return False
        if hub is None or not all(gate["passed"] for gate in gates):
            return True
        return str(report.get("published")).startswith(f"hf://{hub.repo}@")
    except (BadInputError, KeyError, TypeError, AttributeError):
        return False  # it is missing, or no report


def _key(stage: Stage) -> str:
    return f"stages/{stage}.json"
