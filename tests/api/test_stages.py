"""The stages: which a manifest has, and the size of an attempt at each."""

import copy

from dmd_api.loading import parse_manifest
from dmd_api.stages import Size, Stage, stages, stages_of
from tests.conftest import MANIFEST


def test_a_manifest_and_its_spec_in_the_api_server_have_the_same_stages() -> None:
    with_pairs, without = copy.deepcopy(MANIFEST), copy.deepcopy(MANIFEST)
    without["spec"]["method"] = {"name": "DMD2"}
    assert stages(parse_manifest(with_pairs)) == stages_of(with_pairs["spec"]) == list(Stage)
    assert (
        stages(parse_manifest(without))
        == stages_of(without["spec"])
        == [Stage.PREFLIGHT, Stage.DISTILL, Stage.EVALUATE]
    )
    assert Stage.PREPARE not in stages_of({"method": None}), "a spec that an older CRD let pass"


def test_pairs_take_more_pods_in_a_cluster_and_the_same_processes_on_one_machine() -> None:
    content = copy.deepcopy(MANIFEST)
    content["spec"] |= {"workers": {"nodes": 2, "processesPerNode": 2}, "pairWorkers": {"parallelism": 5}}
    spec = parse_manifest(content).spec
    assert [stage.size(spec) for stage in Stage] == [Size(1, 1), Size(5, 1), Size(2, 2), Size(2, 2)]
    assert [stage.local_size(spec) for stage in Stage] == [Size(1, 1), Size(2, 2), Size(2, 2), Size(2, 2)]
