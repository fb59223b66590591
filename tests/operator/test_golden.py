"""The pods of the GPU example, as they were reviewed by hand: eight GPUs a node, nine nodes.

After a change that is wanted: python -m tests.operator.test_golden, and read the difference.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api import runtime
from dmd_api.defaults import Defaults, resolve_defaults
from dmd_api.loading import load_manifest
from dmd_api.stages import Stage
from dmd_operator.pods import Owner, attempt_objects

EXAMPLE = Path(__file__).parents[2] / "examples" / "distill-sd15.yaml"
GOLDEN = Path(__file__).with_name("golden")
STAGES = (Stage.PREPARE, Stage.DISTILL)


def rendered(stage: Stage) -> str:
    defaults = Defaults.model_validate({"images": {"trainer": "registry.example.com/dmd-trainer:1"}})
    manifest = resolve_defaults(load_manifest(EXAMPLE), defaults)
    objects = attempt_objects(manifest, stage, 1, Owner("team", "00000000-0000-0000-0000-000000000000"))
    for variable in objects[-1]["spec"]["template"]["spec"]["containers"][0]["env"]:
        if variable["name"] == runtime.MANIFEST:
            variable["value"] = "(the manifest as JSON)"
    return yaml.dump_all(objects, sort_keys=False, width=120, Dumper=_Plain)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("stage", STAGES)
def test_its_objects_are_those_that_were_reviewed(stage: Stage) -> None:
    assert rendered(stage) == (GOLDEN / f"distill-sd15-{stage}.yaml").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for stage in STAGES:
        (GOLDEN / f"distill-sd15-{stage}.yaml").write_text(rendered(stage))
