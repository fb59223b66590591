"""Every command of the README and the tutorial does what it says, as far as this machine can follow it.

dmdctl's are parsed by dmdctl itself, and those that need no cluster are carried out: long ones rehearsed, and the
installation, with a whole rehearsal, in tests/install. test_cluster_commands.py carries out kubectl's and Helm's.
"""

import ast
import importlib
import io
import re
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import dmdctl.local.run
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import read_manifest
from dmd_api.runtime import Stage
from dmdctl.local.shrink import shrink
from dmdctl.main import app
from tests.docs.typed import FOLLOWED, ROOT, blocks, commands, mentioned, parse
from tests.stages import run_stage_here

README, TUTORIAL = FOLLOWED
PAGES = sorted([README, *(ROOT / "docs").rglob("*.md")])
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CARRIED_OUT = {"init", "plan", "run"}
"""dmdctl's commands that need no cluster and no model."""


def typed(program: str) -> list[list[str]]:
    """The arguments of each time that the README or the tutorial has somebody call a program."""
    return [words[1:] for page in FOLLOWED for words in commands(page) if words[0] == program]


def test_every_command_has_somebody_who_checks_it() -> None:
    checked = {"dmdctl", "uv", "kubectl", "helm", "aws"}
    assert {words[0] for page in FOLLOWED for words in commands(page)} == checked
    assert {arguments[0] for arguments in typed("dmdctl")} >= CARRIED_OUT
    assert {tuple(arguments[:2]) for arguments in typed("aws")} == {("s3", "sync"), ("s3", "cp")}, "none of ours"
    # Blocks without a language are output, and nothing else.
    for page in FOLLOWED:
        assert not any(re.search(r"^(dmdctl|kubectl|helm|make|uv|pip) ", block, re.M) for block in blocks(page, ""))


@pytest.mark.parametrize("arguments", typed("dmdctl"), ids=" ".join)
def test_dmdctl_takes_the_arguments(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_dmdctl_has_the_commands_and_options_that_texts_mention(page: Path) -> None:
    for text in mentioned(page):
        arguments = [word.strip("[]") for word in text.split()[1:]]
        if arguments[0].startswith("-") or "..." in text:
            continue
        try:
            parse(arguments)
        except click.MissingParameter:
            continue  # texts may leave FILE out
        except click.BadParameter:
            if not re.search(r"\b[A-Z]+\b", text):  # a placeholder stands for a value
                raise


@pytest.mark.parametrize("arguments", typed("uv"), ids=" ".join)
def test_what_is_installed_is_this_package_with_extras_that_it_has(arguments: list[str]) -> None:
    assert arguments[:2] == ["tool", "install"]
    asked = Requirement(arguments[2])
    assert asked.name == "dmd-operator"
    assert asked.extras <= EXTRAS.keys()


@pytest.mark.parametrize("arguments", [a for a in typed("dmdctl") if a[0] == "init"], ids=" ".join)
def test_init_writes_a_manifest_and_runs_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[Path] = []

    def run_manifest(file: Path, *others: object, **more: object) -> ExitCode:
        ran.append(file)
        return ExitCode.DONE

    monkeypatch.setattr(dmdctl.local.run, "run_manifest", run_manifest)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == ExitCode.DONE, done.output
    (written,) = tmp_path.iterdir()
    read_manifest(io.BytesIO(written.read_bytes()), str(written))
    assert ran == ([Path(written.name)] if "--run" in arguments else [])


def test_the_manifest_of_the_readme_is_one() -> None:
    (text,) = blocks(README, "yaml")
    assert read_manifest(io.BytesIO(text.encode()), "README.md").metadata.name == "distill-digits"


@pytest.fixture
def my_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's manifest, in the working directory."""
    (text,) = blocks(TUTORIAL, "yaml")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my-model.yaml"
    file.write_text(text)
    return file


@pytest.mark.slow
def test_the_tutorial_s_plan_says_what_the_tutorial_shows(my_model: Path) -> None:
    (arguments,) = (a for a in typed("dmdctl") if a[:2] == ["plan", my_model.name])
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == ExitCode.DONE, done.output
    (shown,) = (block for block in blocks(TUTORIAL, "text") if "at the peak" in block)
    assert shown.strip() in "\n".join(line.rstrip() for line in done.output.splitlines())


def test_the_tutorial_s_manifest_can_be_rehearsed(my_model: Path, tmp_path: Path) -> None:
    assert ["run", my_model.name, "--shrink"] in typed("dmdctl")
    manifest = read_manifest(io.BytesIO(my_model.read_bytes()), str(my_model))
    content = shrink(manifest, tmp_path / "inputs").model_dump(mode="json", by_alias=True, exclude_none=True)
    result = run_stage_here(Stage.PREFLIGHT, content, tmp_path)
    assert result.error is None, result.error


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_python_is_python_and_names_what_is_there(page: Path) -> None:
    found = blocks(page, "python")
    assert found
    for text in found:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"
