"""What others wrote, through all that `dmdctl` shows: nothing in it steers the terminal or poses as another line."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from dmd_api.loading import parse_manifest
from dmd_api.runtime import Progress, StageError, StageResult
from dmd_api.stages import Stage
from dmd_trainer.evaluation.report import Report, ThreeWay, TwoWay
from dmd_trainer.runtime.storage import FileStorage
from dmdctl.cluster.log_lines import Line, Worker, format_line
from dmdctl.cluster.run_view import RunView, next_command, summary
from dmdctl.console import Console, warning
from dmdctl.display import make_display
from dmdctl.local.local_runner import Interrupts, LocalRun
from dmdctl.local.run import _explain
from dmdctl.local.summary import show_summary
from dmdctl.main import main
from tests.api.test_manifest import changed
from tests.awkward import AWKWARD, steers
from tests.cli.test_run_view import condition, resource

awkward = pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
OTHERS = ("\x1b]", "\x1b[2J", "\x1b[31mb", "\x9b", "\x90", "\x08", "\x0b", "\x0c", "\u202e", "\u2066", "\u200b")
"""Sequences that rich does not write here."""


class Screen:
    """A console whose output a test reads."""

    def __init__(self) -> None:
        self.console = Console()
        self.console.file = self.file = io.StringIO()
        self.console.width = 400

    def text(self) -> str:
        shown = self.file.getvalue()
        shown.encode()
        return shown


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Not a terminal: a log."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Screen()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


def show_all(screen: Screen, text: str) -> None:
    with make_display(screen.console) as display:
        display.say(text)
        display.say(warning(text))
        display.start(Stage.DISTILL)
        display.show(Progress.model_construct(stage=Stage.DISTILL, activity=text, messages=[text], losses={text: 1.0}))
        display.finish(Stage.DISTILL, text)
        display.start(Stage.EVALUATE)
        display.fail(Stage.EVALUATE, text)


@awkward
def test_lines_are_as_many_as_were_said(lines: Screen, text: str) -> None:
    show_all(lines, text)
    shown = lines.text()
    assert steers(shown) == []
    assert len(shown.splitlines()) == 8
    assert "\ngate passed" not in shown
    if text == AWKWARD["markup"]:
        assert shown.count(text) == 7


@awkward
def test_bars_move_the_cursor_and_texts_do_not(terminal: Screen, text: str) -> None:
    assert terminal.console.is_terminal
    show_all(terminal, text)
    shown = terminal.text()
    assert "\x1b[" in shown, "bars are drawn"
    assert not [sequence for sequence in OTHERS if sequence in shown]
    assert "\ngate passed" not in shown
    if text == AWKWARD["markup"]:
        assert "[red]x[/red]" in shown


@awkward
def test_a_watched_run(lines: Screen, text: str) -> None:
    with make_display(lines.console) as display:
        view = RunView(display)
        view.see(resource(condition("Healthy", "True", "Running"), stage="distill", activity=text[:200]))
        view.see(resource(condition("Healthy", "False", "Failing", text), condition("Stalled", "True", text, text)))
        view.hear({"type": "Warning", "note": f"event {text}"})
    for ended in (
        resource(condition("Failed", "True", text, text), mlflowRun=text, mlflowRunUrl=text),
        resource(condition("GatesPassed", "False", "GatesFailed", text), modelVersion=text),
        resource(condition("Complete", "True", "Complete"), modelVersion=text),
    ):
        ended["metadata"]["name"] = text
        ended["spec"] = {"tracking": {"registeredModel": text, "alias": text, "uri": text}}
        ended["status"]["completionTime"] = ended["status"]["startTime"]
        assert view.see(ended)
        assert view.status is not None
        for line in summary(ended, view.status):
            lines.console.print(line, soft_wrap=True)
        if (command := next_command(ended, view.status)) is not None:
            lines.console.print(command, soft_wrap=True)
    shown = lines.text()
    assert steers(shown) == []
    assert "\ngate passed" not in shown
    assert "\n---" not in shown


def test_a_tracking_server_s_password_is_not_shown() -> None:
    ended = resource(condition("Complete", "True", "Complete"), modelVersion="1", mlflowRun="r")
    ended["spec"] = {}
    ended["status"]["resolved"] = {"tracking": {"uri": "https://user:hunter2@mlflow"}}
    view = RunView(make_display(Screen().console))
    view.see(ended)
    assert view.status is not None
    shown = "\n".join(map(str, summary(ended, view.status)))
    assert "https://***@mlflow" in shown
    assert "hunter2" not in shown


@awkward
def test_a_workers_log(text: str) -> None:
    line = format_line(Line(0, Worker(Stage.DISTILL, 1, 0, "pod"), text), colour=False)
    assert steers(line) == []
    assert line.count("\n") == 1


REPORT: dict[str, Any] = {
    "method": "DMD",
    "manifest_hash": "abc",
    "seed": 0,
    "samples": 1,
    "fid": ThreeWay(teacher=1, initial=3, generator=2),
    "network_evaluations": TwoWay(teacher=5, generator=1),
    "seconds_per_image": TwoWay(teacher=5, generator=1),
    "gates": [],
    "best_step": 1,
    "generator_sha256": "sha",
}


@awkward
def test_the_end_of_a_run(lines: Screen, tmp_path: Path, text: str) -> None:
    manifest = parse_manifest(changed("spec.tracking.uri", "sqlite:///x/a; rm.db"))
    report = Report(name=text, features=text, device=text, registered_model=text, model_version=text, **REPORT)
    show_summary(lines.console, report, FileStorage(tmp_path), manifest)
    run = LocalRun(manifest, "key", tmp_path, tmp_path, Interrupts())
    _explain(lines.console, run, StageResult(stage=Stage.DISTILL, error=StageError(reason=text, message=text)))
    shown = lines.text()
    assert steers(shown) == []
    assert "\ngate passed" not in shown
    assert "--tracking 'sqlite:///x/a; rm.db'" in shown, "commands are to be pasted into a shell"


@awkward
def test_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    content = changed("metadata.labels", {"a": 1})
    content["spec"][text] = {text: text}
    content["spec"]["training"]["batchSize"] = text
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["dmdctl", "plan", str(manifest)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == ExitCode.BAD_INPUT
    shown = capsys.readouterr().err
    assert steers(shown) == []
    assert len(shown.splitlines()) == (1 if text == AWKWARD["half a character"] else 3)
