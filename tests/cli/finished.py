"""A run on this machine of which nothing is left to do, so that `dmdctl run` shows it within seconds."""

from pathlib import Path

import yaml

from dmd_api.loading import parse_manifest
from dmd_api.manifest import manifest_hash
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_trainer.evaluation.report import Report
from dmd_trainer.runtime.finished import write_result
from dmd_trainer.runtime.storage import FileStorage
from dmdctl.local.run import with_local_defaults
from tests.cli.test_awkward import REPORT
from tests.conftest import MANIFEST

RESULTS = {
    Stage.PREFLIGHT: {},
    Stage.PREPARE: {"pairs": 24},
    Stage.DISTILL: {"fid": 2.0, "bestStep": 6},
    Stage.EVALUATE: {"modelVersion": "1", "registeredModel": "tiny"},
}


def write_finished_run(folder: Path) -> str:
    """Leaves a manifest in `folder`, and what its run would have left below `dmd-runs`; returns the file's name."""
    manifest = with_local_defaults(parse_manifest(MANIFEST), None, None, folder / "dmd-runs")
    place = FileStorage(folder / "dmd-runs" / f"{manifest.metadata.name}-{manifest_hash(manifest)}")
    for stage, result in RESULTS.items():
        write_result(place, StageResult(stage=stage, result=result))
    report = Report(name="tiny", features="digits", device="cpu", registered_model="tiny", model_version="1", **REPORT)
    place.write("report.json", report.model_dump_json(by_alias=True).encode())
    (folder / "m.yaml").write_text(yaml.safe_dump(MANIFEST))
    return "m.yaml"
