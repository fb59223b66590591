"""What the documentation tells people to type: the commands of its blocks, and those within its text."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click
import typer.main

from dmdctl.main import app

ROOT = Path(__file__).parents[2]
FOLLOWED = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
"""The pages that people follow from top to bottom."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(dmdctl [^`\n]+)`")


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [content for name, content in _BLOCK.findall(file.read_text()) if name == language]


def commands(file: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, each as its words."""
    lines = "\n".join(blocks(file, "shell")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mentioned(file: Path) -> list[str]:
    """The dmdctl commands within a page's text."""
    return _INLINE.findall(_BLOCK.sub("", file.read_text()))


def parse(arguments: Sequence[str]) -> click.Context:
    """What dmdctl makes of its arguments, without doing it.

    Raises:
        click.UsageError: it would refuse them.
    """
    command: click.Command = typer.main.get_command(app)
    context, rest = click.Context(command), list(arguments)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, info_name=name)
    return command.make_context(context.info_name, rest)
