"""The operator's image, built from its Dockerfile on a base without a registry, and what is in it."""

import copy
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import only, render
from tests.cluster import binaries, images
from tests.cluster.processes import ClusterError
from tests.conftest import MANIFEST

ROOT = Path(__file__).parents[2]
LARGEST = 150_000_000
TRAINS = {"torch", "torchvision", "mlflow", "boto3", "diffusers"}

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="building images needs root on Linux"),
]


class Image:
    """An image in a docker archive."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar
        (manifest,) = self._json("manifest.json")
        whole = self._json(manifest["Config"])
        self.config, self.history, self.layers = whole["config"], whole["history"], manifest["Layers"]

    def size(self, layer: str) -> int:
        """The layer's bytes, not compressed."""
        return self.tar.getmember(layer).size

    def names(self, layer: str) -> set[str]:
        """The paths of what is in the layer."""
        content = self.tar.extractfile(layer)
        assert content is not None
        with tarfile.open(fileobj=content) as files:
            return set(files.getnames())

    def _json(self, name: str) -> Any:
        content = self.tar.extractfile(name)
        assert content is not None
        return json.load(content)


@pytest.fixture(scope="module")
def base() -> str:
    binaries.install_debian_packages()
    return images.base_image()


@pytest.fixture(scope="module")
def operator(base: str) -> Iterator[Image]:
    dockerfile = ROOT / "images" / "operator" / "Dockerfile"
    archive = images.build_image(dockerfile, ROOT, "docker.io/local/dmd-operator:test", {"BASE": base})
    with tarfile.open(archive) as tar:
        yield Image(tar)


@pytest.fixture(scope="module")
def above_the_base(base: str, operator: Image) -> list[str]:
    """The layers that the Dockerfile adds."""
    with tarfile.open(images.base_archive()) as tar:
        below = Image(tar).layers
    assert operator.layers[: len(below)] == below
    return operator.layers[len(below) :]


def test_the_operators_image_is_small(operator: Image, above_the_base: list[str]) -> None:
    assert 0 < sum(map(operator.size, above_the_base)) < LARGEST


def test_it_holds_the_operator_and_nothing_that_trains(operator: Image, above_the_base: list[str]) -> None:
    names = set().union(*map(operator.names, above_the_base))
    assert "opt/dmd-operator/dmd_operator/__main__.py" in names
    assert not {name.split("/")[2] for name in names if name.count("/") == 2} & TRAINS
    # Where nothing can be written, what is not compiled is compiled at every start.
    assert any(re.fullmatch(r"opt/dmd-operator/dmd_operator/__pycache__/__main__\..*\.pyc", name) for name in names)


def test_it_runs_as_nobody_in_particular_what_the_chart_says(operator: Image) -> None:
    user, _, group = operator.config["User"].partition(":")
    assert int(user) > 0  # a number: only then the kubelet knows that it is not root
    assert int(group) > 0
    (container,) = only(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == operator.config["Entrypoint"]


def test_it_keeps_nothing_of_where_it_was_built(operator: Image, above_the_base: list[str]) -> None:
    kept = json.dumps([operator.config, operator.history])
    assert "pip.conf" not in kept
    assert "index-url" not in kept
    names = set().union(*map(operator.names, above_the_base))
    assert not {name for name in names if name.startswith(("src/", "root/", "etc/pip"))}


@pytest.mark.skipif("DMD_TEST_IMAGES" not in os.environ, reason="gigabytes: `make test-images` builds it")
def test_the_trainers_image_distils(base: str, tmp_path: Path) -> None:
    name = "docker.io/local/dmd-trainer:test"
    images.build(ROOT / "images" / "trainer" / "Dockerfile", ROOT, name, {"BASE": base})
    manifest = copy.deepcopy(MANIFEST)
    manifest["spec"]["teacher"] = {"uri": "builtin://digits-teacher"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(manifest))
    container = images.buildah("from", name).strip()
    try:
        # As in a pod: a user without a name, who can write nothing but a folder for what is temporary.
        images.buildah("copy", "--chown=1000:1000", container, str(tmp_path), "/scratch")
        # A pod can resolve its own name.
        options = ("--isolation=chroot", "--hostname=localhost", "--user=1000:1000", "--workingdir=/scratch")
        inside = ("run", *options, container, "--")
        cuda = images.buildah(*inside, "python", "-c", "import torch; print(torch.version.cuda)")
        assert cuda.strip() != "None"
        said = images.buildah(*inside, "dmdctl", "run", "tiny.yaml")
        assert "one-step" in said
        with pytest.raises(ClusterError):
            images.buildah(*inside, "touch", "/opt/dmd-trainer/new")
    finally:
        images.buildah("rm", container)


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_images_are_pinned_and_their_base_is_a_choice(name: str) -> None:
    text = (ROOT / "images" / name / "Dockerfile").read_text()
    (default,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":\d+\.\d+\S*$", default)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    pinned = ("--constraint constraints.txt", "--no-deps", "--requirement pip.txt")
    assert text.count("pip install") == sum(text.count(option) for option in pinned)
    assert "--hash=sha256:" in (ROOT / "images" / "pip.txt").read_text()
