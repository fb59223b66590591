"""The release: its workflows are sound, and each of their steps is a make target, which runs here.

The package index and the signatures' authority are other people's: only pushing images, and cosign, are played.
"""

import re
import socket
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api import __version__
from tests.cluster.binaries import build
from tests.cluster.processes import wait_for

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OUTSIDE = (
    "python -m pip install uv",
    "uv pip install --system",
    "docker login ",
    "helm registry login ",
    "gh release create ",
)
"""What steps do that is not ours: tools, logins, and GitHub's own command."""
MAKE = re.compile(r"make (?P<arguments>[^>|&]+)")


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Each step of each workflow, with its job's name."""
    found = []
    for file in WORKFLOWS:
        for name, job in yaml.safe_load(file.read_text())["jobs"].items():
            found += [(f"{file.stem}/{name}", step) for step in job["steps"]]
    return found


def commands() -> list[str]:
    """The lines that steps run."""
    return [line for _, step in steps() for line in step.get("run", "").splitlines()]


def test_workflows_are_valid_and_give_nothing_away() -> None:
    subprocess.run([build("actionlint")["actionlint"], *WORKFLOWS], check=True, timeout=300)
    zizmor = Path(sys.executable).with_name("zizmor")
    subprocess.run([zizmor, "--offline", "--quiet", "--persona=pedantic", *WORKFLOWS], check=True, timeout=60)


def test_actions_are_pinned_by_commit() -> None:
    used = re.findall(r"uses: *(\S+)(.*)", "\n".join(file.read_text() for file in WORKFLOWS))
    assert len(used) > 10
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action} does not say which version it is"


def test_each_step_is_a_make_target_that_is_there() -> None:
    ours = [line for line in commands() if not line.startswith(OUTSIDE)]
    assert len(ours) >= 7
    for line in ours:
        found = MAKE.fullmatch(line) or MAKE.match(line)
        assert found, f"`{line}` is no make target: what the workflow does has to run elsewhere too"
        for image in ("operator", "trainer"):
            arguments = found["arguments"].replace('"', "").replace("$IMAGE", image).split()
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("tag", ["", "0.1.0", "v9.9.9", "v0.1.0-rc1"])
def test_a_tag_of_another_version_is_refused(tag: str) -> None:
    done = make("release-check", TAG=tag)
    assert done.returncode != 0
    assert f"the tag '{tag}' is not v{__version__}" in done.stdout


def test_the_notes_are_the_version_s_section_of_the_changelog(tmp_path: Path) -> None:
    for name in ("Makefile", "crds/dmd_api/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n- later\n")
    refused = make("release-check", folder=tmp_path, TAG=f"v{__version__}")
    assert refused.returncode != 0
    assert f"no section [{__version__}]" in refused.stderr
    changelog.write_text(f"## [Unreleased]\n\n- later\n\n## [{__version__}]\n\n- this\n\n## [0.0.1]\n\n- earlier\n")
    assert make("release-check", folder=tmp_path, TAG=f"v{__version__}").returncode == 0
    assert make("release-notes", folder=tmp_path).stdout == "- this\n"


def test_an_image_is_signed_by_its_digest_and_its_packages_are_attested(tmp_path: Path) -> None:
    record = tmp_path / "record"
    digest = "registry.test/dmd-operator@sha256:" + "0" * 64
    answers = f"""case $1 in inspect) echo {digest};; create) echo held;; cp) echo '{{}}' > "$3";; esac"""
    play(tmp_path, "docker", answers)
    play(tmp_path, "cosign", "")
    image = "registry.test/dmd-operator:0.1.0"
    run_played(tmp_path, [ROOT / "images" / "publish", image])
    sbom = "dist/dmd-operator.cdx.json"
    assert record.read_text().splitlines() == [
        f"docker push {image}",
        f"docker inspect --format {{{{index .RepoDigests 0}}}} {image}",
        f"docker create {image}",
        f"docker cp held:/opt/sbom.cdx.json {sbom}",
        f"cosign sign --yes {digest}",
        f"cosign attest --yes --type cyclonedx --predicate {sbom} {digest}",
        "docker rm held",
    ]
    assert (tmp_path / sbom).exists()


def test_the_chart_is_pushed_with_the_version_and_signed_by_its_digest(tmp_path: Path, registry: str) -> None:
    play(tmp_path, "cosign", "")
    helm = tmp_path / "bin" / "helm"
    helm.write_text(
        f'#!/bin/sh\ncase $1 in push) set -- "$@" --plain-http;; esac\nexec {sys.executable} -m tests.chart.helm "$@"\n'
    )
    helm.chmod(0o755)
    run_played(tmp_path, ["make", "--directory", ROOT, "chart", f"HELM={helm}"])
    package = ROOT / "dist" / f"dmd-operator-{__version__}.tgz"
    with tarfile.open(package) as archive:
        chart = archive.extractfile("dmd-operator/Chart.yaml")
        assert chart is not None
        described = yaml.safe_load(chart.read())
    assert (described["version"], described["appVersion"]) == (__version__, __version__)
    run_played(tmp_path, ["make", "--directory", ROOT, "publish-chart", f"HELM={helm}", f"REGISTRY={registry}"])
    manifest = urllib.request.Request(
        f"http://{registry}/v2/charts/dmd-operator/manifests/{__version__}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    with urllib.request.urlopen(manifest, timeout=10) as answer:
        digest = answer.headers["Docker-Content-Digest"]
    (signed,) = (tmp_path / "record").read_text().splitlines()
    assert signed == f"cosign sign --yes {registry}/charts/dmd-operator@{digest}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry of OCI artifacts on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([build("registry")["registry"], "-port", str(port)], stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port), "the registry answers", deadline=30)
        yield f"localhost:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def play(folder: Path, program: str, script: str) -> None:
    """Puts a program into `folder/bin` that records how it is called, and does what `script` says."""
    file = folder / "bin" / program
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/bash\necho "{program} $*" >> {folder}/record\n{script}\n')
    file.chmod(0o755)


def run_played(folder: Path, command: list[Any]) -> None:
    """Runs a command in `folder`, with its played programs first on the PATH."""
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        command, cwd=folder, env={"PATH": path, "HOME": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs make in `folder`, however it ends."""
    command = ["make", "--no-print-directory", *arguments]
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
