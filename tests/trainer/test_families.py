"""Families: each teacher is one family's, and no other file knows a pipeline or a network by its class."""

import re
from pathlib import Path

import dmd_trainer
from dmd_trainer.families.architecture import KNOWN, known_architecture
from dmd_trainer.families.table import EXPORTED, FAMILIES, NETWORKS, TEXT_PIPELINES, find_family

ROOT = Path(dmd_trainer.__file__).parent


def test_nothing_else_in_the_trainer_names_a_pipelines_or_a_networks_class() -> None:
    names = {*TEXT_PIPELINES, *EXPORTED, *NETWORKS}
    word = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b")
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "families"]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): word.findall(path.read_text()) for path in files}
    assert {path: classes for path, classes in found.items() if classes} == {}


def test_every_published_architecture_is_its_familys() -> None:
    for name in KNOWN:
        family = known_architecture(name).family
        assert name in family.published
        assert sum(name in other.published for other in FAMILIES) == 1


def test_a_network_that_no_family_knows_has_none() -> None:
    assert (
        find_family({"_class_name": "FluxTransformer2DModel"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"})
        is None
    )
