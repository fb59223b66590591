"""What the chart grants and what the operator asks for are the same: held against the API server's audit log."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmd_api.labels import STAGE
from tests.chart.helm import CHART, RELEASE, helm
from tests.chart.test_install import ASKED, ASKED_AT_HOME
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Kubectl
from tests.operator import live
from tests.operator.live import eventually, manifest, status
from tests.operator.process import operator
from tests.operator.simulated import simulated_pods, succeed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SYSTEM, TEAM = "audit-system", "audit-team"
USER = f"system:serviceaccount:{SYSTEM}:{RELEASE}"


@pytest.fixture
def installed(api: ControlPlane, tmp_path: Path) -> Iterator[Path]:
    """The chart's rights on the API server, and a kubeconfig of the operator's service account."""
    if api.audit_log is None:
        pytest.skip("a given cluster's audit log cannot be read from here: unset KUBECONFIG")
    for namespace in (SYSTEM, TEAM):
        live.make_namespace(api.kubectl, namespace)
    options = ("--namespace", SYSTEM, "--take-ownership", "--force-conflicts", "--set", "replicaCount=0")
    helm("install", RELEASE, CHART, *options, kubeconfig=api.kubeconfig)
    token = api.kubectl("create", "token", RELEASE, "-n", SYSTEM).strip()
    kubeconfig = tmp_path / "operator.kubeconfig"
    kubeconfig.write_text(api.kubeconfig.read_text())
    set_token = ("config", "--kubeconfig", str(kubeconfig))
    api.kubectl(*set_token, "set-credentials", "operator", f"--token={token}")
    api.kubectl(*set_token, "set-context", "--current", "--user=operator")
    yield kubeconfig
    helm("uninstall", RELEASE, "--namespace", SYSTEM, kubeconfig=api.kubeconfig)


def asked(audit_log: Path) -> dict[tuple[str, str, str], set[int]]:
    """Each verb on each resource that the operator asked for, with the answers' codes."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != USER or "objectRef" not in event:
            continue  # what is no resource is discovery, which everybody may
        what = event["objectRef"]
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        code = event.get("responseStatus", {}).get("code", 0)
        found.setdefault((what.get("apiGroup", ""), resource, event["verb"]), set()).add(code)
    return found


def test_rights_are_what_is_asked_for_and_nothing_more(api: ControlPlane, installed: Path, tmp_path: Path) -> None:
    """Everything that an operator does is made to happen, or a right would seem to be unused."""
    kubectl = api.kubectl
    lease = {"lease_namespace": SYSTEM, "lease_name": RELEASE, "lease_seconds": "4", "progress_from": "[]"}
    # Names that are taken: it looks whose they are.
    for kind in ("service", "job"):
        taken: dict[str, Any] = {
            "service": {"apiVersion": "v1", "spec": {"clusterIP": "None", "selector": {"a": "b"}}},
            "job": {"apiVersion": "batch/v1", "spec": _harmless()},
        }[kind]
        # The first stage that has one.
        name = f"{kind}-{'distill' if kind == 'service' else 'preflight'}-1"
        kubectl.apply({**taken, "kind": kind.title(), "metadata": {"name": name, "namespace": TEAM}})
        kubectl.apply(manifest(kind, TEAM))

    def runs_on_in_distill(pod: dict[str, Any]) -> Any:
        held = pod["metadata"]["labels"][STAGE] == "distill" and "suspended" in pod["metadata"]["name"]
        return None if held else succeed(pod)

    def work() -> None:
        with operator(installed, tmp_path, **lease):
            kubectl.apply(manifest("suspended", TEAM), manifest("over", TEAM, ttlSecondsAfterFinished=1))
            eventually(lambda: status(kubectl, "suspended", TEAM).get("phase") == "Distilling", "it distils")
            patch = json.dumps({"spec": {"suspend": True}})
            kubectl("patch", "dmd", "suspended", "-n", TEAM, "--type=merge", "-p", patch)
            eventually(lambda: status(kubectl, "suspended", TEAM).get("phase") == "Suspended", "it is suspended")
            eventually(lambda: not live.exists(kubectl, "dmd", "over", TEAM), "it is deleted when its time is over")
            for kind in ("service", "job"):
                eventually(lambda kind=kind: refusals(kubectl, kind) >= 2, "tried again")

    async def play() -> None:
        async with simulated_pods(str(api.kubeconfig), runs_on_in_distill):
            await asyncio.to_thread(work)

    asyncio.run(play())
    found = asked(api.audit_log)
    assert not {what for what, codes in found.items() if codes & {401, 403}}
    assert found.keys() == ASKED | ASKED_AT_HOME
    assert not {resource for _, resource, _ in found if resource.startswith("secrets")}
    kubectl("delete", "dmd", "--all", "-n", TEAM)


def refusals(kubectl: Kubectl, name: str) -> int:
    return [reason for reason, _ in live.events(kubectl, name, TEAM)].count("Refused")


def _harmless() -> dict[str, Any]:
    container = {"name": "nothing", "image": "nothing:1"}
    return {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
