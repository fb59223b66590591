"""What commands print for other programs."""

import json
import math
from pathlib import Path

import pytest

from dmd_api.exit_codes import ExitCode
from dmd_api.loading import load_manifest
from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmd_trainer.planning.memory import estimate_memory
from dmd_trainer.planning.teacher import architecture_of
from dmdctl.console import warning
from dmdctl.json_lines import JsonLines
from tests.cli.test_cli import dmdctl

EXAMPLE = Path(__file__).parents[2] / "examples" / "distill-digits.yaml"


def test_a_run_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as lines:
        lines.start(Stage.DISTILL)
        progress = Progress(stage=Stage.DISTILL, step=3, total=9, losses={"fake_score": 0.5, "gan": math.nan})
        lines.show(progress)
        lines.show(progress)  # nothing new
        lines.say(warning("two\nlines"))
        lines.finish(Stage.DISTILL, "done", took=2.0)
        lines.result(ExitCode.DONE, report={"fid": 1.5})
    out = capsys.readouterr().out
    assert "NaN" not in out, "Python reads it, and few others do"
    start, shown, said, finish, result = map(json.loads, out.splitlines())
    assert start == {"event": "start", "stage": "distill", "secondsAgo": 0}
    assert (shown["event"], shown["step"], shown["losses"]) == ("progress", 3, {"fake_score": 0.5, "gan": None})
    assert "fid" not in shown
    assert (said["event"], finish["seconds"]) == ("message", 2.0)
    assert result == {"event": "result", "exitCode": 0, "report": {"fid": 1.5}}


def test_a_plan_is_one_document(tmp_path: Path) -> None:
    done = dmdctl("plan", EXAMPLE, "--output", "json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    manifest = load_manifest(EXAMPLE)
    architecture = architecture_of(manifest)
    assert architecture is not None
    assert [stage["stage"] for stage in found["stages"]] == ["preflight", "prepare", "distill", "evaluate"]
    assert found["memory"]["enough"] is True
    assert found["memory"]["bytes"] == estimate_memory(manifest, architecture).total
    assert found["gpu"]["seconds"].keys() >= {"distill"}
    assert found["storage"]["pairs"] > 0


def test_a_document_has_no_times_of_this_machine(tmp_path: Path) -> None:
    done = dmdctl("plan", EXAMPLE, "--output", "json", "--probe", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "--probe" in done.stderr
