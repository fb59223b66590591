"""The chart against a real API server: its schemas, its admission, its authorizer, and Helm's life of a release."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, NAMESPACE, RELEASE, helm, of_kind, render, template
from tests.chart.test_objects import COMBINATIONS, granted
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import ClusterError, wait_for

pytestmark = pytest.mark.cluster

TEAMS = ("team-a", "team-b")
OPERATOR = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
GROUP = "dmd-operator.io"
# What the operator's code calls; the test that walks the audit log holds a running operator against it.
ASKED = {
    *((GROUP, "dmddistillations", verb) for verb in ("get", "list", "watch", "delete")),
    (GROUP, "dmddistillations/status", "update"),
    *(("batch", "jobs", verb) for verb in ("get", "list", "watch", "create", "delete")),
    *(("", "pods", verb) for verb in ("list", "watch")),
    *(("", "services", verb) for verb in ("get", "list", "create", "delete")),
    ("events.k8s.io", "events", "create"),
    *(("networking.k8s.io", "networkpolicies", verb) for verb in ("get", "create")),
}
# A right that an admission plugin looks for, and nobody uses: children that block their owner's deletion need it.
HELD = {(GROUP, "dmddistillations/finalizers", "update")}
ASKED_AT_HOME = {("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")}
DISTILLATION = {
    "apiVersion": "dmd-operator.io/v1alpha1",
    "kind": "DMDDistillation",
    "metadata": {"name": "run", "namespace": TEAMS[0]},
    "spec": {
        "teacher": {"uri": "builtin://digits-teacher"},
        "method": {"regression": {"pairs": 8}},
        "training": {"generatorUpdates": 6, "batchSize": 8, "learningRate": 0.001},
    },
}


@pytest.fixture(scope="module")
def server(api: ControlPlane) -> ControlPlane:
    """The API server with the namespaces of the tests, which enforce the Pod Security Standard `restricted`."""
    for name in (NAMESPACE, *TEAMS):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        api.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return api


@pytest.fixture
def release(server: ControlPlane) -> Iterator[ControlPlane]:
    """The chart, installed as it is; uninstalled in the end where the test did not."""
    install(server)
    yield server
    helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", kubeconfig=server.kubeconfig)


def install(server: ControlPlane, **values: Any) -> None:
    """Other tests share the API server and may have applied the CRD: Helm takes it over."""
    helm(
        "install", RELEASE, CHART, "--namespace", NAMESPACE, "--take-ownership", "--force-conflicts", "--values", "-",
        kubeconfig=server.kubeconfig, text=yaml.safe_dump(values),
    )  # fmt: skip


def rights(server: ControlPlane, user: str, namespace: str) -> set[tuple[str, str, str]]:
    """All that `user` may do in `namespace` by the API server's own answer, beyond what its like may without a role."""

    def review(name: str) -> set[tuple[str, str, str]]:
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
        asked = yaml.safe_dump({**kind, "spec": {"namespace": namespace}})
        answer = yaml.safe_load(
            server.kubectl("create", "--as", name, "--validate=false", "--filename=-", "--output=yaml", text=asked)
        )
        return granted(answer["status"]["resourceRules"])

    return review(user) - review(f"{user}-without-roles")


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_the_api_server_accepts_every_object(server: ControlPlane, values: dict[str, Any]) -> None:
    server.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename=-",
        text=template(values),
    )  # fmt: skip


def test_the_api_server_does_check(server: ControlPlane) -> None:
    wrong = template().replace("terminationGracePeriodSeconds:", "terminationGraceSeconds:")
    with pytest.raises(ClusterError, match="terminationGraceSeconds"):
        server.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename=-",
            text=wrong,
        )  # fmt: skip


def test_pods_are_admitted_where_restricted_is_enforced(release: ControlPlane) -> None:
    def pods() -> list[Any]:
        return release.kubectl.get("pods", "--namespace", NAMESPACE)["items"]

    wait_for(lambda: len(pods()) == 2, "two pods of the operator")
    assert {pod["spec"]["serviceAccountName"] for pod in pods()} == {RELEASE}


def test_rights_are_what_the_operator_asks_for(release: ControlPlane) -> None:
    assert rights(release, OPERATOR, TEAMS[0]) == ASKED | HELD
    assert rights(release, OPERATOR, NAMESPACE) == ASKED | HELD | ASKED_AT_HOME


def test_rights_end_at_the_chosen_namespaces(release: ControlPlane) -> None:
    helm(
        "upgrade", RELEASE, CHART, "--namespace", NAMESPACE, "--set", f"watchNamespaces={{{TEAMS[0]}}}",
        kubeconfig=release.kubeconfig,
    )  # fmt: skip
    assert rights(release, OPERATOR, TEAMS[0]) == ASKED | HELD
    assert rights(release, OPERATOR, TEAMS[1]) == set()
    assert rights(release, OPERATOR, NAMESPACE) == ASKED_AT_HOME


def test_who_edits_a_namespace_edits_its_distillations(release: ControlPlane) -> None:
    for role in ("view", "edit"):
        user = f"{role}er"
        release.kubectl.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": user, "namespace": TEAMS[0]},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": user}],
            }
        )

    def verbs(user: str) -> set[str]:
        found = rights(release, user, TEAMS[0])
        return {verb for group, resource, verb in found if (group, resource) == (GROUP, "dmddistillations")}

    wait_for(lambda: "create" in verbs("editer"), "the aggregated roles")
    assert verbs("viewer") == {"get", "list", "watch"}
    writing = {"create", "update", "patch", "delete", "deletecollection"}
    assert verbs("editer") == writing | {"get", "list", "watch"}


@pytest.mark.slow  # the garbage collector looks for new kinds every half minute
def test_the_crd_and_what_runs_survive_all_but_their_own_deletion(release: ControlPlane, tmp_path: Path) -> None:
    """Upgrade, rollback, uninstall, and a new install, beside a distillation with a child."""
    release.kubectl.apply(DISTILLATION)
    where = (f"--namespace={TEAMS[0]}",)
    uid = release.kubectl.get("dmd/run", *where)["metadata"]["uid"]
    owner = {"apiVersion": DISTILLATION["apiVersion"], "kind": "DMDDistillation", "name": "run", "uid": uid}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "child", "namespace": TEAMS[0], "ownerReferences": [owner]},
        "spec": {"clusterIP": "None", "selector": {"a": "b"}},
    }
    release.kubectl.apply(service)
    child = release.kubectl.get("service/child", *where)["metadata"]["uid"]

    def unharmed() -> bool:
        return (
            release.kubectl.get("dmd/run", *where)["metadata"]["uid"] == uid
            and release.kubectl.get("service/child", *where)["metadata"]["uid"] == child
        )

    def columns() -> list[str]:
        (version,) = release.kubectl.get("crd/dmddistillations.dmd-operator.io")["spec"]["versions"]
        return [column["name"] for column in version["additionalPrinterColumns"]]

    newer = tmp_path / "dmd-operator"
    shutil.copytree(CHART, newer)
    crd = newer / "templates" / "crd.yaml"
    crd.write_text(crd.read_text().replace("name: Phase\n", "name: State\n"))
    told = {"kubeconfig": release.kubeconfig}
    helm("upgrade", RELEASE, newer, "--namespace", NAMESPACE, **told)
    assert "State" in columns()
    assert unharmed()
    helm("rollback", RELEASE, "1", "--namespace", NAMESPACE, **told)
    assert "State" not in columns()
    assert unharmed()

    helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", **told)
    left = {f"{found['kind']}/{found['metadata']['name']}" for found in of_kind(render(), "CustomResourceDefinition")}
    assert left == {"CustomResourceDefinition/dmddistillations.dmd-operator.io"}
    assert not release.kubectl.get(
        "deployments,serviceaccounts", "--namespace", NAMESPACE, "-l", "app.kubernetes.io/instance"
    )["items"]
    assert unharmed()

    install(release)
    assert unharmed()
    helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", **told)
    release.kubectl("delete", "dmd", "run", *where, "--timeout=30s")

    def services() -> list[Any]:
        return release.kubectl.get("services", *where)["items"]

    wait_for(lambda: not services(), "the garbage collection of the child")
