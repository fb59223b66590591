"""The commands for a cluster in the README and the tutorial, typed against a real API server."""

import shutil
from pathlib import Path

import pytest

from tests.chart.helm import CHART, helm
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import ClusterError
from tests.docs.typed import FOLLOWED, blocks, commands

PUBLISHED = "oci://ghcr.io/dmd-operator/charts/dmd-operator"
"""The chart as users name it; here it is the repository's, which the release packages."""


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_they_are_accepted(page: Path, api: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3.env").write_text("AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=secret\n")
    shutil.copy(CHART.parents[1] / "examples" / "distill-digits.yaml", tmp_path)
    Path("my-model.yaml").write_text(blocks(page, "yaml")[0])
    api.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    done: list[str] = []
    try:
        for program, *arguments in commands(page):
            if program == "helm":
                arguments = [str(CHART) if word == PUBLISHED else word for word in arguments]
                helm(*arguments, "--take-ownership", "--force-conflicts", kubeconfig=api.kubeconfig)
            elif program == "kubectl" and arguments[0] == "wait":
                # Nobody distils on this server: the condition is never met.
                short = ["--timeout=1s" if word.startswith("--timeout") else word for word in arguments]
                with pytest.raises(ClusterError, match="timed out waiting for the condition"):
                    api.kubectl(*short)
            elif program == "kubectl":
                api.kubectl(*arguments)
            else:
                continue
            done.append(f"{program} {arguments[0]}")
    finally:
        helm(
            "uninstall", "dmd-operator", "--namespace", "dmd-operator", "--ignore-not-found", kubeconfig=api.kubeconfig
        )
        api.kubectl("delete", "namespace", "team", "--wait=true")
    assert {"helm install", "kubectl create", "kubectl apply"} <= set(done)
