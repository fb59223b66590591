"""`--quiet` and `--verbose`: what is said less, what is said more, and what stays as it is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmdctl import verbosity
from dmdctl.cluster.run_view import next_command, read_status, summary
from dmdctl.console import Console
from dmdctl.display import make_display
from dmdctl.local.stage_logs import StageLogs
from dmdctl.waiting import waiting
from tests.cli.finished import write_finished_run
from tests.cli.test_cli import dmdctl
from tests.cli.test_run_view import condition, resource
from tests.cli.test_watch import once

TABLE = "network evaluations"
GALLERY = ("picture", "report ", "sample ", "serve ", "metrics")


@pytest.fixture
def quiet() -> Iterator[None]:
    verbosity.choose(quiet=True, verbose=0)
    yield
    verbosity.choose(quiet=False, verbose=0)


@pytest.mark.parametrize("arguments", [("-q", "run", "m.yaml"), ("run", "m.yaml", "--quiet")], ids=" ".join)
def test_quiet_leaves_a_runs_result(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_finished_run(tmp_path)
    done = dmdctl(*arguments, folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stderr == ""
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("tiny: 1 samples")
    assert TABLE in done.stdout
    assert last.startswith("FID 2.00 times the teacher's")


def test_otherwise_it_comes_with_stages_and_hints(tmp_path: Path) -> None:
    write_finished_run(tmp_path)
    done = dmdctl("run", "m.yaml", folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "pairs: done before" in done.stdout
    assert all(f"\n{hint}" in done.stdout for hint in GALLERY)


def test_json_is_the_same(tmp_path: Path) -> None:
    write_finished_run(tmp_path)
    plain, *others = (
        dmdctl(*arguments, folder=tmp_path)
        for arguments in (
            ("run", "m.yaml", "--output", "json"),
            ("-q", "run", "m.yaml", "--output", "json"),
            ("-vv", "run", "m.yaml", "--output", "json"),
        )
    )
    assert plain.returncode == ExitCode.DONE, plain.stderr
    assert json.loads(plain.stdout.splitlines()[-1])["event"] == "result"
    assert [other.stdout for other in others] == [plain.stdout] * 2


@pytest.mark.timeout(600)
def test_an_error_is_said_by_all_and_what_led_to_it_by_verbose(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["teacher"]["uri"] = (tmp_path / "no teacher").as_uri()
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest_dict))
    quiet = dmdctl("run", "m.yaml", "-q", folder=tmp_path)
    assert quiet.returncode == ExitCode.BAD_INPUT
    error, logs = quiet.stdout.splitlines()
    assert error.startswith("preflight: ")
    assert logs.startswith("logs: ")
    assert quiet.stderr == ""
    verbose = dmdctl("run", "m.yaml", "-v", folder=tmp_path)
    assert verbose.returncode == ExitCode.BAD_INPUT
    assert error in verbose.stdout.splitlines()
    assert "preflight: starting" in verbose.stdout
    folder = Path(logs.removeprefix("logs: ")).with_name("preflight-2")
    (written,) = (file.read_text().splitlines() for file in folder.rglob("stderr.log"))
    assert "BadInput" in written[-1]
    assert [f"preflight-0 {line}" for line in written if line] == verbose.stderr.splitlines()


def test_quiet_shows_nothing_on_the_way(
    quiet: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    console = Console()
    with waiting(console, "waiting"), console.spinner("drawing"), make_display(console) as display:
        display.start(Stage.DISTILL)
        display.say("a line")
        display.show(Progress(stage=Stage.DISTILL, step=1, total=2, messages=["a message"]))
        display.finish(Stage.DISTILL, "done")
        print("what others print is theirs")
    console.print("the result")
    captured = capsys.readouterr()
    assert captured.out == "what others print is theirs\nthe result\n"
    assert captured.err == ""


def test_a_watched_runs_result_is_one_line_and_a_hint_another() -> None:
    ended = resource(condition("GatesPassed", "True", "GatesPassed"), modelVersion="3")
    (result,) = summary(ended, read_status(ended))
    assert result.plain.startswith("complete: version 3")
    assert str(next_command(ended, read_status(ended))).startswith("sample: dmdctl sample models:/")
    failed = resource(condition("Failed", "True", "BadInput", "m"))
    assert next_command(failed, read_status(failed)) is None


@pytest.mark.parametrize(
    "arguments",
    [("-q", "-v", "list"), ("run", "m.yaml", "-q", "-v"), ("watch", "x", "-qv")],
    ids=" ".join,
)
def test_both_at_once_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = once("none", *arguments, folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "--quiet, --verbose: contradict each other" in done.stderr


SCRIPT = """
import logging, sys, warnings
from dmdctl import verbosity
verbosity.choose(quiet=False, verbose=int(sys.argv[1]))
for name in ("dmd_trainer.tracking", "dmdctl.serve", "library"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)("%s \\x1b[2J%s", level, name)
verbosity.quiet_warnings()
warnings.warn_explicit("old", UserWarning, "there.py", 1, module="torch.nn")
"""


@pytest.mark.parametrize(
    ("verbose", "ours", "others", "warned"),
    [
        (0, ["warning"], ["warning"], False),
        (1, ["info", "warning"], ["warning"], True),
        (2, ["debug", "info", "warning"], ["info", "warning"], True),
        (3, ["debug", "info", "warning"], ["info", "warning"], True),
    ],
)
def test_which_loggers_are_heard(verbose: int, ours: list[str], others: list[str], warned: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(verbose)], capture_output=True, text=True, check=True, timeout=180
    )
    lines = [line.split()[-2:] for line in done.stderr.splitlines() if "2J" in line]
    for name, levels in (("dmd_trainer.tracking", ours), ("dmdctl.serve", ours), ("library", others)):
        assert [level for level, logged in lines if logged.endswith(name)] == levels
    assert ("UserWarning: old" in done.stderr) == warned
    if verbose:
        assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_logs_are_read_once_and_line_by_line(tmp_path: Path) -> None:
    logs = StageLogs(tmp_path)
    assert list(logs.news()) == []
    files = [tmp_path / "dmdctl" / "app" / "distill" / str(replica) / "stderr.log" for replica in (2, 10)]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"one\nhalf a line" if number else b"0%\r50%\r\xff\r\n\n")
        (file.parent / "combined.log").write_text("the same again\n")
    assert list(logs.news()) == ["distill-2 \ufffd", "distill-10 one"]
    assert list(logs.news()) == []
    with files[1].open("a") as file:
        file.write(", and the other\nlast")
    assert list(logs.news()) == ["distill-10 half a line, and the other"]
    assert list(logs.news(over=True)) == ["distill-10 last"]
