"""Colours on a terminal, none with NO_COLOR (https://no-color.org), and nothing but text where there is no terminal."""

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from tests.cli.finished import write_finished_run
from tests.cli.test_cli import DMDCTL
from tests.cli.test_kubeconfig import answering, write_kubeconfig
from tests.conftest import MANIFEST

SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
MOVES = set("ABCDGHJKhl")
"""The last letters of sequences that move the cursor, erase, or hide it."""
COMMANDS = {
    "run": (("run", "m.yaml"), ExitCode.DONE),
    "plan": (("plan", "m.yaml", "--no-probe"), ExitCode.DONE),
    "list": (("list", "--kubeconfig", "config"), ExitCode.DONE),
    "error": (("run", "none.yaml"), ExitCode.BAD_INPUT),
    "help": (("run", "--help"), ExitCode.DONE),
}
commands = pytest.mark.parametrize("command", COMMANDS)
VARIABLES = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def shown(command: str, folder: Path, *, terminal: bool, **variables: str) -> str:
    """What a command writes, to a pseudo-terminal or to a pipe."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1", **variables}
    (folder / "m.yaml").write_text(yaml.safe_dump(MANIFEST))
    arguments, code = COMMANDS[command]
    with answering() as (address, _):
        write_kubeconfig(folder / "config", address, "team")
        ours, theirs = pty.openpty() if terminal else os.pipe()
        process = subprocess.Popen(
            [str(DMDCTL), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:
            pass  # how a terminal ends on Linux
        os.close(ours)
        assert process.wait(60) == code, written
    return written.decode()


def colours(text: str) -> list[str]:
    """The sequences that choose a colour; those for bold and dim text do not."""
    found = []
    for parameters, letter in SEQUENCE.findall(text):
        numbers = [int(number or 0) for number in parameters.split(";")] if letter == "m" else []
        if any(30 <= number <= 49 or 90 <= number <= 107 for number in numbers):
            found.append(parameters)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_finished_run(tmp_path)
    return tmp_path


@commands
def test_no_color_on_a_terminal(command: str, folder: Path) -> None:
    text = shown(command, folder, terminal=True, NO_COLOR="1")
    assert colours(text) == []
    assert "\x1b]" not in text


@commands
def test_without_a_terminal_nothing_but_text_is_written(command: str, folder: Path) -> None:
    text = shown(command, folder, terminal=False)
    assert text.strip()
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.parametrize("command", ["run", "error"])
def test_there_are_colours_on_a_terminal(command: str, folder: Path) -> None:
    assert colours(shown(command, folder, terminal=True))
    assert colours(shown(command, folder, terminal=True, NO_COLOR="")), "empty is as unset"


@pytest.mark.parametrize("command", ["run", "error"])
def test_force_color_colours_a_log_and_moves_nothing(command: str, folder: Path) -> None:
    text = shown(command, folder, terminal=False, FORCE_COLOR="1")
    assert SEQUENCE.search(text)
    assert not {letter for _, letter in SEQUENCE.findall(text)} & MOVES
    assert "\r" not in text
    assert colours(shown(command, folder, terminal=False, FORCE_COLOR="1", NO_COLOR="1")) == []


def test_bars_move_the_cursor(folder: Path) -> None:
    letters = {letter for _, letter in SEQUENCE.findall(shown("run", folder, terminal=True))}
    assert letters & MOVES, "or the test above sees nothing"


def test_a_dumb_terminal_gets_lines(folder: Path) -> None:
    text = shown("run", folder, terminal=True, TERM="dumb")
    assert "\x1b" not in text
    assert "pairs: done before" in text
