"""Each library that a package imports is declared where that package is installed, and none is declared for nothing."""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"dmd_api", "dmd_operator", "dmd_trainer", "dmdctl"}
# Folder: the extras with which it is installed, beside the core.
PLACES = {
    "crds/dmd_api": (),
    "operator/dmd_operator": ("operator",),
    "trainer/dmd_trainer": ("trainer",),
    "cli/dmdctl": (),
    "cli/dmdctl/cluster": ("operator",),
    "cli/dmdctl/local": ("trainer",),
    "cli/dmdctl/model": ("trainer",),
    "cli/dmdctl/planning": ("trainer",),
    "cli/dmdctl/serving": ("trainer", "serve"),
}
ELSEWHERE = {
    "crds/dmd_api/apps.py": "torchx-nightly",  # of the launchers alone, and both extras have it
    "cli/dmdctl/verbosity.py": "trainer",
}
NOT_IMPORTED = {"psutil"}
"""What another library needs and does not declare."""


def declared(*extras: str) -> set[str]:
    """The distributions that the core, and these extras, ask for."""
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in asked}


def imported(file: Path) -> Iterator[str]:
    """The modules of other people that the file imports when it runs."""
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@cache
def providers_of_modules() -> Mapping[str, list[str]]:
    """The distributions that bring each top-level module; asked once, since all their records are read."""
    return packages_distributions()


def third_party(file: Path) -> set[str]:
    """The distributions that the file's imports come from."""
    modules = set(imported(file)) - OURS - sys.stdlib_module_names
    providers = providers_of_modules()
    # Of several distributions with a module of one name, such as mlflow's, the first that we declare counts.
    everything = declared(*PROJECT["optional-dependencies"])
    found = set()
    for module in modules:
        names = [canonicalize_name(name) for name in providers[module]]
        found.add(next((name for name in names if name in everything), names[0]))
    return found


@pytest.mark.parametrize("folder", PLACES)
def test_what_a_package_imports_is_declared(folder: str) -> None:
    allowed = declared(*PLACES[folder])
    for file in files_of(folder):
        extra = ELSEWHERE.get(file.relative_to(ROOT).as_posix(), "")
        there = declared(extra) if extra in PROJECT["optional-dependencies"] else {extra}
        missing = third_party(file) - allowed - there
        assert not missing, f"{file.relative_to(ROOT)} imports {missing}, which its extra does not declare"


def files_of(folder: str) -> list[Path]:
    """A place's files, without those of places inside it."""
    inner = [ROOT / other for other in PLACES if other.startswith(f"{folder}/")]
    return [file for file in (ROOT / folder).rglob("*.py") if not any(file.is_relative_to(path) for path in inner)]


def test_nothing_is_declared_for_nothing() -> None:
    used = {name for folder in PLACES for file in files_of(folder) for name in third_party(file)}
    extras = {extra for place in PLACES.values() for extra in place}
    assert declared(*extras) - used == NOT_IMPORTED
