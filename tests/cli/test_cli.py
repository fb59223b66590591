"""The command: help that stands alone, and a line and an exit code for each thing a user can get wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api import __version__
from dmd_api.exit_codes import ExitCode

DMDCTL = Path(sys.executable).with_name("dmdctl")


def dmdctl(
    *arguments: object, folder: Path, timeout: float = 800, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DMDCTL), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        input=stdin,
        env={**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )


def test_version_and_help(tmp_path: Path) -> None:
    assert dmdctl("--version", folder=tmp_path).stdout.strip() == f"dmdctl {__version__}"
    top = dmdctl("--help", folder=tmp_path).stdout
    assert all(command in top for command in ("init", "run", "plan", "watch", "logs", "sample", "--install-completion"))
    for command in ("init", "run", "plan", "watch", "logs", "sample"):
        text = dmdctl(command, "--help", folder=tmp_path).stdout
        assert "Example" in text


def test_help_starts_without_the_extras_libraries(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['dmdctl', '--version']\n"
        "from dmdctl.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'diffusers', 'mlflow', 'boto3', 'sklearn', 'kubernetes', 'aiohttp'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=180)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(("watch", "x"), "operator"), (("logs", "x"), "operator"), (("sample", "x", "--out", "x.png"), "trainer")],
)
def test_an_extra_that_is_missing_is_named(arguments: tuple[str, ...], extra: str) -> None:
    script = (
        "import importlib.util, sys\n"
        "importlib.util.find_spec = lambda name: None\n"
        f"sys.argv = ['dmdctl', *{arguments!r}]\n"
        "from dmdctl.main import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"pip install 'dmd-operator[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.yaml"), "none.yaml: no such file"),
        (("run", "bad.yaml"), "spec.training.batchsize: is not a field of the API; did you mean batchSize?"),
        (("plan", "bad.yaml"), "spec.training.batchsize: is not a field of the API; did you mean batchSize?"),
        (("run", "good.yaml", "--processes", "3"), "--processes: spec.training.batchSize 8 is not a multiple"),
        (("run", "good.yaml", "--storage", "ftp://x/y"), "the scheme ftp:// is not known here"),
        (("sample", "no/such/folder", "--out", "x.png"), "is no diffusers pipeline's folder"),
        (("sample", "models:/a@b", "--out", "x.png"), "no registry here"),
        (("sample", "models:/a@b", "--out", "x.gif"), "must be a .png file"),
    ],
)
def test_a_users_mistake_is_a_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, manifest_dict: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(manifest_dict))
    manifest_dict["spec"]["training"]["batchsize"] = manifest_dict["spec"]["training"].pop("batchSize")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(manifest_dict))
    done = dmdctl(*arguments, folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_plan_creates_nothing(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest_dict))
    done = dmdctl("plan", "m.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("tiny-prepare", "tiny-distill-1", "network evaluations", "pairs: 24", "about"):
        assert text in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["m.yaml"]


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_manifest_comes_from_standard_input_too(command: str, manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["training"]["batchsize"] = manifest_dict["spec"]["training"].pop("batchSize")
    done = dmdctl(command, "-", folder=tmp_path, stdin=yaml.safe_dump(manifest_dict))
    assert done.returncode == ExitCode.BAD_INPUT
    assert "spec.training.batchsize: is not a field of the API; did you mean batchSize?" in done.stderr
    done = dmdctl(command, "-", folder=tmp_path, stdin="a: [")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "standard input, line 1, column 5: not valid YAML" in done.stderr


def test_plan_reads_standard_input_and_shows_its_own_words_alone(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    done = dmdctl("plan", "-", folder=tmp_path, stdin=yaml.safe_dump(manifest_dict))
    assert done.returncode == 0, done.stderr
    assert "tiny-distill-1" in done.stdout
    assert "enough: GPUs of" in done.stdout
    assert done.stderr == ""


def test_plan_without_the_trainer_counts_what_it_can(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    manifest_dict["spec"]["method"] = {"name": "DMD2"}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest_dict))
    script = (
        "import importlib.util, sys\n"
        "absent = ('torch', 'diffusers', 'mlflow', 'transformers', 'safetensors', 'numpy', 'boto3')\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in absent else find_spec(name)\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "sys.argv = ['dmdctl', 'plan', 'm.yaml']\n"
        "from dmdctl.main import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "need the trainer; pip install 'dmd-operator[trainer]'" in done.stdout
    assert f"{100 * (35 + 2):,}" in done.stdout  # the tiny teacher's schedule is EDM's


def test_plan_of_a_teacher_on_the_hub_needs_no_probe() -> None:
    examples = Path(__file__).parents[2] / "examples"
    done = dmdctl("plan", examples / "distill-sd15.yaml", "--no-probe", folder=examples)
    assert done.returncode == 0, done.stderr
    assert "500,000" in done.stdout
    assert "distill-sd15-distill-1" in done.stdout
