"""The wheel, as somebody installs it who has no clone: in an empty HOME, with what the package index has."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from dmd_api import __version__
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import load_manifest
from dmd_api.stages import stages

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
PACKAGES = ("crds/dmd_api", "operator/dmd_operator", "trainer/dmd_trainer", "cli/dmdctl")
SHARDED = "sdxl-dmd2-lora"
"""The recipe that is rehearsed: it trains in several processes, and tests/cli/test_shrink.py leaves it to this file."""


@dataclass(frozen=True)
class Machine:
    """A machine that has the wheel and nothing else of the project.

    Attributes:
        home: an empty HOME, which is the working directory too.
        wheel: the file to install.
    """

    home: Path
    wheel: Path

    def __call__(
        self, *command: object, timeout: float = 300, code: int = ExitCode.DONE
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there, which has to end with `code`."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.home,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def environment(self) -> dict[str, str]:
        """Of this machine's environment only what reaches the package index, and uv's cache."""
        inherited = ("UV_CACHE_DIR", "UV_SYSTEM_CERTS", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "SSL_CERT_FILE")
        return {
            **{name: value for name, value in os.environ.items() if name in inherited or name.endswith("_PROXY")},
            "UV_CACHE_DIR": cache_of_uv(),
            "UV_TOOL_DIR": str(self.home / "tools"),
            "UV_TOOL_BIN_DIR": str(self.home / "bin"),
            "HOME": str(self.home),
            "PATH": f"{self.home / 'bin'}:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }


def cache_of_uv() -> str:
    """The cache that the development environment was installed from."""
    return subprocess.run([UV, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as the release builds it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def machine(wheel: Path, tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, wheel)


def test_its_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
        names = set(archive.namelist())
    assert str(metadata.version) == __version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= (metadata.project_urls or {}).keys()
    assert "Typing :: Typed" in (metadata.classifiers or [])
    assert {f"{Path(package).name}/py.typed" for package in PACKAGES} <= names
    assert metadata.description_content_type == "text/markdown"
    links = re.findall(r"\]\(([^)\s]+)\)", metadata.description or "")
    assert len(links) > 10
    assert all(link.startswith(("https://", "#")) for link in links), "PyPI knows no files of the repository"
    assert any(f"/v{__version__}/docs/images/" in link for link in links)


def test_it_has_all_that_the_packages_have(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = {
        file.relative_to((ROOT / package).parent).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert names == here | {f"dmdctl/examples/{file.name}" for file in (ROOT / "examples").glob("*.yaml")}


def test_the_core_alone_writes_manifests_and_names_the_extra_that_runs_them(machine: Machine) -> None:
    environment = machine.home / "environment"
    machine(UV, "venv", "--quiet", "--python", sys.executable, environment)
    machine(
        UV, "pip", "install", "--quiet", "--python", environment / "bin" / "python",
        "--constraint", ROOT / "constraints.txt", machine.wheel,
    )  # fmt: skip
    dmdctl = environment / "bin" / "dmdctl"
    assert machine(dmdctl, "init").stdout.startswith("wrote distill-digits.yaml")
    listed = machine(dmdctl, "init", "--list").stdout
    assert all(file.stem.removeprefix("distill-") in listed for file in (ROOT / "examples").glob("*.yaml"))
    refused = machine(dmdctl, "run", "distill-digits.yaml", code=ExitCode.BAD_INPUT).stderr
    assert "pip install 'dmd-operator[trainer]'" in refused
    installed = machine(UV, "pip", "list", "--python", environment / "bin" / "python").stdout
    assert "torch" not in installed, "the core is what renders and reads: no torch, and no torchx either"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_tool_without_a_clone_rehearses_a_recipe_that_shards(machine: Machine) -> None:
    machine(
        UV, "tool", "install", "--quiet", "--python", sys.executable, "--constraints", ROOT / "constraints.txt",
        f"dmd-operator[trainer] @ {machine.wheel.as_uri()}",
    )  # fmt: skip
    share_bytecode(machine.home / "tools" / "dmd-operator")
    machine("dmdctl", "init", SHARDED)
    manifest = f"distill-{SHARDED}.yaml"
    done = machine("dmdctl", "run", manifest, "--shrink", timeout=1100)
    runs = machine.home / "dmd-runs"
    assert {path.name for path in runs.iterdir()} == {"shrunken"}
    (picture,) = re.findall(r"^picture +(.+)$", done.stdout, re.MULTILINE)
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    again = machine("dmdctl", "run", manifest, "--shrink")
    assert again.stdout.count("done before") == len(stages(load_manifest(machine.home / manifest)))


def share_bytecode(environment: Path) -> None:
    """Gives a new environment the bytecode of this one, whose files it shares by hard links from uv's cache.

    Python compiles a file again where its time or its size differ; without this, it would compile all of them.
    """
    ours, theirs = (next((base / "lib").glob("python*/site-packages")) for base in (Path(sys.prefix), environment))
    for compiled in ours.rglob("__pycache__"):
        target = theirs / compiled.relative_to(ours)
        if target.parent.is_dir() and not target.exists():
            shutil.copytree(compiled, target, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    """A hard link, or a copy where the folders are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
