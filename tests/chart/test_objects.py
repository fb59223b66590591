"""What the chart renders: rights, the CRD, the operator's pods, and what may reach whom."""

import itertools
from typing import Any

import pytest

from dmd_api.apps import PROGRESS_PORT
from dmd_api.crd import crd
from dmd_api.labels import DISTILLATION
from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Stage
from dmd_operator.isolation import network_policy
from dmd_operator.pods import Owner, attempt_objects
from tests.chart.helm import NAMESPACE, RELEASE, Object, of_kind, only, render
from tests.chart.test_values import settings

EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "images"},
    "watchNamespaces": ["team-a", "team-b"],
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "defaults": {"storage": {"uri": "s3://models/dmd"}, "tracking": {"uri": "http://mlflow:5000"}},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"annotations": {"example.com/role": "dmd"}},
    "podAnnotations": {"example.com/note": "true"},
    "podLabels": {"tier": "control"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "system-cluster-critical",
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "metrics": {"service": {"annotations": {"prometheus.io/scrape": "true"}}},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
}
NOTHING: dict[str, Any] = {
    "crds": {"install": False},
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False, "name": "given"},
    "podDisruptionBudget": {"enabled": False},
    "metrics": {"service": {"enabled": False}},
    "networkPolicy": {"enabled": False},
}
COMBINATIONS = {
    "as it is": {},
    "everything": EVERYTHING,
    "the least": NOTHING,
    "no pod for now": {"replicaCount": 0, "resources": {}},
}


def pod(values: dict[str, Any] | None = None) -> Object:
    return only(render(values), "Deployment")["spec"]["template"]


def granted(rules: list[Object]) -> set[tuple[str, str, str]]:
    """Each verb on each resource."""
    return {
        triple for rule in rules for triple in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


def run() -> DMDDistillation:
    return parse_manifest(
        {
            "apiVersion": "dmd-operator.io/v1alpha1",
            "kind": "DMDDistillation",
            "metadata": {"name": "run"},
            "spec": {
                "teacher": {"uri": "hf://owner/model"},
                "method": {"regression": {"pairs": 8}},
                "training": {"generatorUpdates": 6, "batchSize": 64, "learningRate": 1e-4},
                "storage": {"uri": "s3://bucket/runs"},
                "tracking": {"uri": "http://mlflow:5000"},
                "images": {"trainer": "trainer:1"},
            },
        }
    )


def trainer_pod() -> Object:
    *_, job = attempt_objects(run(), Stage.DISTILL, 1, Owner("team-a", "uid"))
    return job["spec"]["template"]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_objects_are_named_labelled_and_not_repeated(values: dict[str, Any]) -> None:
    objects = render(values)
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(keys) == len(set(keys))
    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "dmd-operator"
        assert values.get("commonLabels", {}).items() <= labels.items()


def test_the_least_is_a_deployment() -> None:
    assert [found["kind"] for found in render(NOTHING)] == ["Deployment"]
    assert pod(NOTHING)["spec"]["serviceAccountName"] == "given"


@pytest.mark.parametrize("keep", [True, False])
def test_the_crd_is_the_generated_one(keep: bool) -> None:
    found = only(render({"crds": {"keep": keep}}), "CustomResourceDefinition")
    annotations = found["metadata"].pop("annotations", {})
    assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
    del found["metadata"]["labels"]
    assert found == crd()


def test_all_namespaces_take_a_cluster_role() -> None:
    objects = render()
    binding = only(objects, "ClusterRoleBinding")
    role = next(o for o in of_kind(objects, "ClusterRole") if o["metadata"]["name"] == binding["roleRef"]["name"])
    assert ("batch", "jobs", "create") in granted(role["rules"])
    account = only(objects, "ServiceAccount")["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": NAMESPACE}]


def test_chosen_namespaces_take_roles_in_them_and_no_other() -> None:
    objects = render({"watchNamespaces": ["team-a", "team-b"]})
    assert not of_kind(objects, "ClusterRoleBinding")
    for cluster_role in of_kind(objects, "ClusterRole"):  # for users, bound to nobody here
        assert any("/aggregate-to-" in label for label in cluster_role["metadata"]["labels"])
    all_over = next(r for r in of_kind(render(), "ClusterRole") if r["metadata"]["name"] == "dmd-operator")
    roles = {o["metadata"]["namespace"]: o for o in of_kind(objects, "Role")}
    assert roles.keys() == {"team-a", "team-b", NAMESPACE}
    for namespace in ("team-a", "team-b"):
        assert roles[namespace]["rules"] == all_over["rules"]
    assert granted(roles[NAMESPACE]["rules"]) == {
        ("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")
    }
    for binding in of_kind(objects, "RoleBinding"):
        role = roles[binding["metadata"]["namespace"]]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"][0]["namespace"] == NAMESPACE


def test_rights_are_on_one_lease() -> None:
    container = pod()["spec"]["containers"][0]
    lease = next(v["value"] for v in container["env"] if v["name"] == "DMD_OPERATOR_LEASE_NAME")
    create, use = only(render(), "Role")["rules"]
    assert create["verbs"] == ["create"]
    assert use["resourceNames"] == [lease]


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_no_rule_reaches_secrets_or_more_than_it_names(values: dict[str, Any]) -> None:
    for role in (found for found in render(values) if found["kind"] in {"Role", "ClusterRole"}):
        for group, resource, verb in granted(role["rules"]):
            assert "*" not in (group, resource, verb)
            assert resource != "secrets"
            assert verb not in {"escalate", "bind", "impersonate"}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as it is", "everything"])
def test_the_operators_pods_are_restricted(values: dict[str, Any]) -> None:
    spec = pod(values)["spec"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    assert all("emptyDir" in volume for volume in spec["volumes"])


def test_a_service_of_the_operators_name_does_not_set_its_port() -> None:
    assert pod()["spec"]["enableServiceLinks"] is False


def test_probes_and_metrics_ask_the_operators_port() -> None:
    objects = render({"metrics": {"port": 9090}, "serviceMonitor": {"enabled": True, "interval": "15s"}})
    template = only(objects, "Deployment")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == 9090
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        paths[probe] = container[probe]["httpGet"]["path"]
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    service = only(objects, "Service")
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    monitor = only(objects, "ServiceMonitor")["spec"]
    assert selects(monitor["selector"], service["metadata"]["labels"])
    (endpoint,) = monitor["endpoints"]
    assert endpoint == {"port": service["spec"]["ports"][0]["name"], "interval": "15s"}


def test_images_by_tag_and_by_digest() -> None:
    def image(**values: str) -> str:
        return str(pod({"image": values})["spec"]["containers"][0]["image"])

    assert image(repository="r/o") == "r/o:0.1.0"
    assert image(repository="r/o", tag="2") == "r/o:2"
    assert image(repository="r/o", tag="2", digest=f"sha256:{'a' * 64}") == f"r/o@sha256:{'a' * 64}"


def test_what_a_user_sets_on_pods_is_there() -> None:
    template = pod(EVERYTHING)
    spec = template["spec"]
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
        assert spec[field] == EVERYTHING[field]
    assert EVERYTHING["podAnnotations"].items() <= template["metadata"]["annotations"].items()
    assert {"tier": "control", "team": "images"}.items() <= template["metadata"]["labels"].items()
    assert EVERYTHING["extraEnv"][0] in spec["containers"][0]["env"]


def test_constraints_spread_the_operators_own_pods() -> None:
    template = pod(EVERYTHING)
    (constraint,) = template["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert selects(constraint["labelSelector"], template["metadata"]["labels"])


def test_a_new_version_of_the_chart_alone_restarts_nothing() -> None:
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & pod()["metadata"]["labels"].keys()


def test_the_disruption_budget_is_for_the_operators_pods() -> None:
    objects = render({"podDisruptionBudget": {"maxUnavailable": "50%"}})
    budget = only(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == "50%"
    assert selects(budget["selector"], only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"])


def test_a_runs_pods_hear_each_other_on_all_ports_and_the_operator_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, operator = trainer_pod(), pod(EVERYTHING)
    peers = settings(EVERYTHING, monkeypatch).progress_from
    assert peers is not None
    policy = network_policy(run(), Owner("team-a", "uid"), peers)["spec"]
    assert selects(policy["podSelector"], trainer["metadata"]["labels"])
    assert not selects(policy["podSelector"], operator["metadata"]["labels"])
    assert not selects(policy["podSelector"], {**trainer["metadata"]["labels"], DISTILLATION: "another"})
    between, progress = policy["ingress"]
    assert between == {"from": [{"podSelector": policy["podSelector"]}]}, "of the same namespace only, at all ports"
    asks, *metrics = progress["from"]
    assert selects(asks["podSelector"], operator["metadata"]["labels"])
    assert selects(asks["namespaceSelector"], {"kubernetes.io/metadata.name": NAMESPACE})
    assert metrics == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert [port["port"] for port in progress["ports"]] == [PROGRESS_PORT]


def test_nobody_but_the_operator_reads_progress_unless_the_values_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = settings({}, monkeypatch).progress_from
    assert peers is not None
    assert len(peers) == 1
    (only_between,) = network_policy(run(), Owner("team-a", "uid"), [])["spec"]["ingress"]
    assert "ports" not in only_between, "a rule without peers would be for everyone"


def test_a_value_turns_the_policies_off(monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"networkPolicy": {"enabled": False}}
    assert settings(off, monkeypatch).progress_from is None
    objects = render(off)
    assert not of_kind(objects, "NetworkPolicy")
    (role,) = (r for r in of_kind(objects, "ClusterRole") if r["metadata"]["name"] == RELEASE)
    assert not {what for what in granted(role["rules"]) if what[1] == "networkpolicies"}


def test_aggregated_roles_let_users_see_and_make_distillations() -> None:
    roles = {r["metadata"]["name"]: r for r in of_kind(render(), "ClusterRole")}
    view, edit = roles["dmd-operator-view"], roles["dmd-operator-edit"]
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert {verb for _, _, verb in granted(view["rules"])} == {"get", "list", "watch"}
    assert ("dmd-operator.io", "dmddistillations/status", "update") not in granted(edit["rules"])
