"""`dmdctl list`, `get`, `suspend`, `resume` and `delete` on a real API server; kubectl is the oracle."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from tests.cli.resources import Resource, ensure_crd, environment
from tests.cli.test_cli import DMDCTL
from tests.cli.test_watch import once
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import GivenCluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def resource(api: ControlPlane | GivenCluster) -> Iterator[Resource]:
    ensure_crd(api)
    made = Resource(api, "changed")
    made.write(("Healthy", "True", "Running", ""), phase="Distilling", stage="distill", attempt=1, step=42, total=100)
    yield made
    api.kubectl("delete", "dmd", made.name, "--ignore-not-found")


def test_list_has_kubectls_columns(resource: Resource, tmp_path: Path) -> None:
    done = once(resource.api.kubeconfig, "list", folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    head, *rows = (line.split() for line in done.stdout.splitlines())
    theirs, *_ = (line.split() for line in resource.api.kubectl("get", "dmd").splitlines())
    assert [name.upper() for name in head] == theirs
    (row,) = (row for row in rows if row[0] == resource.name)
    assert row[1:3] == ["Distilling", "42"]
    everywhere = once(resource.api.kubeconfig, "list", "-A", folder=tmp_path).stdout.splitlines()
    assert everywhere[0].split()[0] == "Namespace"
    assert any(line.split()[:2] == ["default", resource.name] for line in everywhere)


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_get_prints_what_kubectl_prints(resource: Resource, tmp_path: Path, form: str, read: object) -> None:
    done = once(resource.api.kubeconfig, "get", resource.name, "-o", form, folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert callable(read)
    assert read(done.stdout) == json.loads(resource.api.kubectl("get", "dmd", resource.name, "-o", "json"))


def test_suspend_resume_and_delete(resource: Resource, tmp_path: Path) -> None:
    def suspended() -> bool:
        found = json.loads(resource.api.kubectl("get", "dmd", resource.name, "-o", "json"))
        return bool(found["spec"].get("suspend"))

    kubeconfig, name = resource.api.kubeconfig, resource.name
    assert "checkpoint" in once(kubeconfig, "suspend", name, folder=tmp_path).stdout
    assert suspended()
    assert "was so already" in once(kubeconfig, "suspend", name, folder=tmp_path).stdout
    assert "resumed" in once(kubeconfig, "resume", name, folder=tmp_path).stdout
    assert not suspended()
    refused = once(kubeconfig, "delete", name, folder=tmp_path)
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "--yes" in refused.stderr
    assert "deleted" in once(kubeconfig, "delete", name, "--yes", folder=tmp_path).stdout
    gone = once(kubeconfig, "suspend", name, folder=tmp_path)
    assert gone.returncode == ExitCode.BAD_INPUT
    assert f"{name}: no such DMDDistillation" in gone.stderr


def test_kubectl_finds_it_as_a_plugin(resource: Resource, tmp_path: Path) -> None:
    told = environment(resource.api.kubeconfig)
    told["PATH"] = f"{DMDCTL.parent}:{told['PATH']}"
    done = subprocess.run(
        [str(binaries.kubectl()), "dmd", "list"],
        capture_output=True,
        text=True,
        check=False,
        env=told,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    assert resource.name in done.stdout
