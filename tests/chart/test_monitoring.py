"""What the chart brings for Prometheus and Grafana: alerts that fire when they should, and metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

import dmd_operator.metrics
from dmd_api.apps import PROGRESS_PORT
from dmd_api.loading import parse_manifest
from dmd_api.stages import Stage
from dmd_operator.pods import Owner, attempt_objects
from dmd_operator.seen import Seen
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer
from tests.chart.helm import CHART, NAMESPACE, only, render
from tests.chart.promtool import promtool
from tests.chart.test_objects import run

ALL_ON: dict[str, Any] = {
    name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "grafanaDashboard")
}
LABEL_OF_THE_RUN = "dmd_operator_io_distillation"
_LEADS = {'dmd_operator_api_requests_total{verb="PUT", code="200", pod="leader"}': "0+12x60"}


def rules() -> dict[str, Any]:
    return only(render(ALL_ON), "PrometheusRule")["spec"]


def dashboard() -> dict[str, Any]:
    (config,) = (o for o in render(ALL_ON) if o["kind"] == "ConfigMap")
    return json.loads(config["data"]["dmd-operator.json"])


def exposed() -> set[str]:
    """The names of the operator's and the trainers' samples."""
    operators = [*REGISTRY.collect(), *dmd_operator.metrics.Distillations(Seen()).collect()]
    named = {sample.name for family in operators for sample in family.samples} | {family.name for family in operators}
    named |= {"dmd_operator_errors_total", "dmd_operator_looks_total", "dmd_operator_api_requests_total"} & {
        f"{family.name}_total" for family in operators
    }
    board = ProgressBoard(Stage.DISTILL, attempt=1)
    board.update(
        step=1, total=2, eta_seconds=1.0, images_per_second=1.0, fid=1.0, best_fid=1.0, losses={"fake_score": 0.5}
    )
    with ProgressServer(board, "127.0.0.1:0") as server:
        text = urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10).read().decode()
    return named | {family.name for family in text_string_to_metric_families(text)}


def test_only_metrics_that_there_are_are_asked_for() -> None:
    expressions = [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    asked = {name for expression in expressions for name in re.findall(r"\bdmd_[a-z_]+", expression)}
    asked.remove(LABEL_OF_THE_RUN)
    assert len(asked) >= 10
    assert asked <= exposed()


def test_rules_are_judged_by_prometheus(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    failed = 'dmd_operator_distillations{pod="a", phase="Failed"}'
    labels = {"namespace": "team", LABEL_OF_THE_RUN: "run", "loss": "fake_score"}
    series = "dmd_loss{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
    cases = [
        _case("a leader writes", {'dmd_operator_api_requests_total{verb="PUT", code="200"}': "0+12x60"}, {}),
        _case(
            "nobody leads",
            {'dmd_operator_api_requests_total{verb="PUT", code="200"}': "100x60"},
            {"DMDOperatorNobodyLeads": [{"severity": "critical"}]},
        ),
        _case("nobody is there", {}, {"DMDOperatorNobodyLeads": [{"severity": "critical"}]}),
        _case(
            "looks fail",
            {'dmd_operator_errors_total{reason="Api403"}': "0+1x60", **_LEADS},
            {"DMDOperatorLooksFail": [{"severity": "warning", "reason": "Api403"}]},
        ),
        _case(
            "it is slow",
            {
                'dmd_operator_decision_seconds_bucket{le="5"}': "0+1x60",
                'dmd_operator_decision_seconds_bucket{le="10"}': "0+10x60",
                'dmd_operator_decision_seconds_bucket{le="+Inf"}': "0+10x60",
                **_LEADS,
            },
            {"DMDOperatorDecidesSlowly": [{"severity": "warning"}]},
        ),
        _case("one has failed", {failed: "1x50 2x10", **_LEADS}, {"DMDDistillationFailed": [{"severity": "warning"}]}),
        _case("one failed long ago", {failed: "2x60", **_LEADS}, {}),
        _case(
            "a loss is no number",
            {series: "0.5x30" + " NaN" * 30, **_LEADS},
            {"DMDTrainingLossNotFinite": [{"severity": "warning", **labels}]},
        ),
        _case("a loss is high", {series: "0+1000x60", **_LEADS}, {}),
    ]
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    promtool("check", "rules", tmp_path / "rules.yaml")
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yaml")


def _case(name: str, series: dict[str, str], expected: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """A case for `promtool test rules`: of all alerts these fire after an hour, and no other."""
    described = {rule["alert"]: rule.get("annotations", {}) for group in rules()["groups"] for rule in group["rules"]}
    tests = []
    for alert in described:
        fires = expected.get(alert, [])
        tests.append(
            {
                "eval_time": "60m",
                "alertname": alert,
                "exp_alerts": [
                    {"exp_labels": labels, "exp_annotations": _filled(described[alert], labels)} for labels in fires
                ],
            }
        )
    found = [{"series": name, "values": values} for name, values in series.items()]
    return {"name": name, "interval": "1m", "input_series": found, "alert_rule_test": tests}


def _filled(annotations: dict[str, str], labels: dict[str, str]) -> dict[str, str]:
    """The annotations with the labels' values in them."""
    return {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for name, text in annotations.items()
    }


@pytest.mark.parametrize("namespaces", [[], ["team-a"]])
def test_trainers_are_found_where_they_run(namespaces: list[str]) -> None:
    monitor = only(render({"podMonitor": {"enabled": True}, "watchNamespaces": namespaces}), "PodMonitor")["spec"]
    assert monitor["namespaceSelector"] == ({"matchNames": namespaces} if namespaces else {"any": True})
    *_, job = attempt_objects(run(), Stage.DISTILL, 1, Owner("team-a", "uid"))
    template = job["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert set(monitor["podTargetLabels"]) <= template["metadata"]["labels"].keys()
    (endpoint,) = monitor["podMetricsEndpoints"]
    (port,) = (p for p in template["spec"]["containers"][0]["ports"] if p["name"] == endpoint["port"])
    assert port["containerPort"] == PROGRESS_PORT


def test_grafanas_sidecar_finds_the_dashboard() -> None:
    (config,) = (o for o in render(ALL_ON) if o["kind"] == "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    found = dashboard()
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(target["expr"] for panel in found["panels"] for target in panel.get("targets", ()))


def test_the_tests_pod_is_not_the_operators_and_is_let_in() -> None:
    objects = render({"networkPolicy": {"metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]}})
    pod, service = only(objects, "Pod"), only(objects, "Service")
    labels = pod["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= labels.items()
    assert f"{service['metadata']['name']}.{NAMESPACE}.svc" in pod["spec"]["containers"][0]["args"][0]
    (rule,) = only(objects, "NetworkPolicy")["spec"]["ingress"]
    assert any(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in rule["from"])


def test_what_artifact_hub_is_told_is_the_charts() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    told = described["annotations"]
    images = yaml.safe_load(told["artifacthub.io/images"])
    assert {image["image"].rpartition(":")[2] for image in images} == {described["appVersion"]}
    (kind,) = yaml.safe_load(told["artifacthub.io/crds"])
    crd = only(render(), "CustomResourceDefinition")
    assert kind["name"] == crd["metadata"]["name"]
    assert kind["version"] in {version["name"] for version in crd["spec"]["versions"]}
    root = Path(__file__).parents[2]
    assert (root / described["icon"].partition("/main/")[2]).is_file()
    (example,) = yaml.safe_load(told["artifacthub.io/crdsExamples"])
    parse_manifest(example)


def test_further_volumes_variables_and_objects() -> None:
    values = {
        "extraVolumes": [{"name": "trust", "configMap": {"name": "trust"}}],
        "extraVolumeMounts": [{"name": "trust", "mountPath": "/trust"}],
        "extraEnvFrom": [{"configMapRef": {"name": "proxy"}}],
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}-proxy"},
                "data": {"HTTPS_PROXY": "http://proxy:3128"},
            }
        ],
    }
    objects = render(values)
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert values["extraVolumes"][0] in spec["volumes"]
    assert values["extraVolumeMounts"][0] in container["volumeMounts"]
    assert container["envFrom"] == values["extraEnvFrom"]
    assert only(objects, "ConfigMap")["metadata"]["name"] == "dmd-operator-proxy"
