"""The CRD is structural, current, and accepts what the models accept."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dmd_api.crd import crd, spec_schema
from dmd_api.generate import stale
from dmd_api.rules import RULES
from dmd_api.status import Condition, RunStatus

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "prefixItems", "definitions"}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"], f"{path}[]")


def test_generated_files_are_current() -> None:
    assert stale() == []


def test_the_schema_is_structural_and_bounded() -> None:
    for path, node in nodes(spec_schema()):
        assert not FORBIDDEN & node.keys(), path
        assert "type" in node, path
        assert node.get("additionalProperties") is not False, path
        match node["type"]:
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "object":
                bounded = "maxProperties" in node and "additionalProperties" in node
                assert "properties" in node or bounded or node.get("x-kubernetes-preserve-unknown-fields"), path


def test_every_field_of_the_spec_is_described() -> None:
    undescribed = [
        path for path, node in nodes(spec_schema()) if path and "[]" not in path and not node.get("description")
    ]
    assert not undescribed


def test_rules_have_messages_that_name_field_and_remedy() -> None:
    rules = spec_schema()["x-kubernetes-validations"]
    assert len(rules) > len(RULES)
    for rule in rules:
        assert rule["message"]
        assert rule["fieldPath"].startswith(".")


def test_names_columns_and_status() -> None:
    spec = crd()["spec"]
    assert spec["names"]["shortNames"] == ["dmd"]
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    assert {"Phase", "Step", "FID", "Age"} <= {column["name"] for column in version["additionalPrinterColumns"]}
    assert "conditions" in version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_fit_the_schema(path: Path) -> None:
    schema = spec_schema()
    for _, node in nodes(schema):  # what Kubernetes writes as a flag, JSON Schema writes as a number
        for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if node.pop(flag, False):
                node[flag] = node.pop(bound)
    jsonschema.validate(yaml.safe_load(path.read_text())["spec"], schema)


def test_the_api_server_keeps_every_field_of_the_status() -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert set(schema["properties"]) == {field.alias for field in RunStatus.model_fields.values()}
    condition = schema["properties"]["conditions"]["items"]
    assert set(condition["properties"]) == {field.alias for field in Condition.model_fields.values()}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    full = RunStatus(
        step=3,
        losses={"regression": 0.5},
        next_attempt_time=now,
        conditions=(Condition(type="Healthy", status="True", reason="Running", last_transition_time=now),),
    )
    jsonschema.validate(full.model_dump(mode="json", by_alias=True, exclude_none=True), schema)
