"""What images are made of: pinned by hashes, and listed by the build's own command, here on this environment."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTED = re.compile(
    r"""python3 -c \\\n +'(import runpy[^']*)' \\\n +environment (.*) --output-file /opt/sbom.cdx.json "\$\(command"""
)


def test_dependencies_are_pinned_by_hashes_and_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(pins) > 100
    assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)
    assert "://" not in text


def test_images_list_their_packages(tmp_path: Path) -> None:
    (command,) = {
        LISTED.findall((ROOT / "images" / name / "Dockerfile").read_text())[0] for name in ("operator", "trainer")
    }
    code, options = command
    path = tmp_path / "sbom.cdx.json"
    arguments = ["environment", *options.split(), "--output-file", str(path), sys.executable]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=300)
    found = json.loads(path.read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {component["name"]: component["version"] for component in found["components"]}
    for package in ("torch", "kubernetes", "pydantic"):
        assert versions[package] == metadata.version(package)
