"""The results of finished stages in a run's storage, which outlive pods, Jobs and whoever watched them."""

import json

from pydantic import ValidationError

from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_trainer.runtime.storage import Storage


def write_result(storage: Storage, result: StageResult) -> None:
    """Leaves the result of a stage that is done."""
    storage.write(_key(result.stage), result.model_dump_json(indent=1).encode())


def read_result(storage: Storage, stage: Stage, manifest: DMDDistillation) -> StageResult | None:
    """The result of `stage`; None where it is not done, or done for other gates than the manifest's."""
    if not storage.exists(_key(stage)):
        return None
    try:
        result = StageResult.model_validate_json(storage.read(_key(stage)))
    except ValidationError:
        return None
    return None if stage is Stage.EVALUATE and not _same_gates(storage, manifest) else result


def _same_gates(storage: Storage, manifest: DMDDistillation) -> bool:
    asked = json.loads(storage.read("report.json"))["gates"] if storage.exists("report.json") else None
    gates = [gate.model_dump() for gate in manifest.spec.gates]
    return asked is not None and [{k: gate.get(k) for k in ("metric", "max", "min")} for gate in asked] == gates


def _key(stage: Stage) -> str:
    return f"stages/{stage}.json"
