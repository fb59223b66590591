"""Writes the generated files: the CRD, the manifest's reference, the chart's table of values.

python -m dmd_api.generate            writes
python -m dmd_api.generate --check    says whether they are current, exit code 1 if not
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dmd_api.crd import GROUP, PLURAL, crd, spec_schema

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "dmd-operator"
NOTICE = "# Generated from crds/dmd_api by `make generate`; do not edit.\n"


def generated() -> dict[Path, str]:
    """Every generated file with its content."""
    return {
        ROOT / "crds" / f"{PLURAL}.{GROUP}.yaml": NOTICE + yaml.safe_dump(crd(), sort_keys=False, width=120),
        ROOT / "docs" / "manifest.md": _reference(),
        CHART / "templates" / "crd.yaml": _crd_template(),
        CHART / "README.md": _chart_readme(),
    }


def stale() -> list[Path]:
    """The generated files that are not what the models say."""
    return [path for path, content in generated().items() if not path.exists() or path.read_text() != content]


def _reference() -> str:
    schema = spec_schema()
    rules = [rule for rule in schema["x-kubernetes-validations"] if "oldSelf" not in rule["rule"]]
    lines = [
        "<!-- Generated from crds/dmd_api by `make generate`; do not edit. -->",
        "# The manifest",
        "",
        "A `DMDDistillation` (`dmd-operator.io/v1alpha1`, short name `dmd`) as a user writes it.",
        "Steps are always counted in generator updates.",
        "",
        "## Fields of `spec`",
        "",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
        *_rows(schema, ""),
        "",
        "## Rules over several fields",
        "",
        *(f"- `{rule['fieldPath'].lstrip('.')}`: {rule['message'].partition(': ')[2]}" for rule in rules),
        "",
        "## What may change after creation",
        "",
        "`suspend`, `maxRestarts`, `activeDeadlineSeconds`, `ttlSecondsAfterFinished`, `gates` and `tracking.alias`.",
        "",
    ]
    return "\n".join(lines)


def _rows(schema: dict[str, Any], prefix: str) -> list[str]:
    rows = []
    required = schema.get("required", [])
    for name, child in schema["properties"].items():
        path = prefix + name
        default = "required" if name in required else _default(child)
        rows.append(f"| `{path}` | {_type(child)} | {default} | {child.get('description', '')} |")
        if child.get("type") == "object" and "properties" in child:
            rows += _rows(child, f"{path}.")
        elif child.get("type") == "array" and "properties" in child["items"]:
            rows += _rows(child["items"], f"{path}[].")
    return rows


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema or schema["default"] == {}:
        return ""
    return f"`{yaml.safe_dump(schema['default'], default_flow_style=True).splitlines()[0]}`"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return kind
    opening = "(" if schema.get("exclusiveMinimum") else "["
    closing = ")" if schema.get("exclusiveMaximum") else "]"
    if low is None or high is None:
        return f"{kind} {'>' if low is not None else '<'} {low if low is not None else high}"
    return f"{kind} in {opening}{low:g}, {high:g}{closing}"


def _crd_template() -> str:
    """The CRD as a template: Helm installs what is in a chart's `crds/` but never upgrades it."""
    head, name, rest = yaml.safe_dump(crd(), sort_keys=False, width=120).partition(f"  name: {PLURAL}.{GROUP}\n")
    metadata = """\
  labels:
    {{- include "dmd-operator.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    # Uninstalled with the release, it would take every distillation with it.
    helm.sh/resource-policy: keep
  {{- end }}
"""
    assert "{{" not in rest, "Helm would read it"
    return f"{NOTICE}{{{{- if .Values.crds.install }}}}\n{head}{name}{metadata}{rest}{{{{- end }}}}\n"


def _chart_readme() -> str:
    """The chart's README.md with its table of values regenerated."""
    begin, end = "<!-- values, generated from values.yaml by `make generate` -->\n", "<!-- end of values -->\n"
    before, _, rest = (CHART / "README.md").read_text().partition(begin)
    return before + begin + _values_table() + end + rest.partition(end)[2]


def _values_table() -> str:
    """A row for each value that values.yaml describes: its type from the schema, its default from the values."""
    text = (CHART / "values.yaml").read_text()
    values, schema = yaml.safe_load(text), json.loads((CHART / "values.schema.json").read_text())
    rows = ["| value | type | default | meaning |", "|---|---|---|---|"]
    for path, meaning in _described(text):
        value, node = values, schema
        for name in path:
            value, node = value[name], node["properties"][name]
            node = schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        kind = ", ".join(node["enum"]) if "enum" in node else node["type"]
        kind = kind if isinstance(kind, str) else " or ".join(kind)
        rows.append(f"| `{'.'.join(path)}` | {kind} | `{json.dumps(value)}` | {meaning} |")
    return "\n".join(rows) + "\n"


def _described(text: str) -> Iterator[tuple[list[str], str]]:
    """The path of each value with a comment `# -- ...` above it, and the comment."""
    above: list[tuple[int, str]] = []
    meaning = None
    for line in text.splitlines():
        if comment := re.match(r" *# -- (.*)", line):
            meaning = comment[1]
        elif key := re.match(r"( *)(\w+):", line):
            depth = len(key[1])
            above = [(other, name) for other, name in above if other < depth] + [(depth, key[2])]
            if meaning is not None:
                yield [name for _, name in above], meaning
                meaning = None


def main() -> int:
    """The command; its exit code."""
    if "--check" in sys.argv[1:]:
        for path in stale():
            print(f"{path.relative_to(ROOT)} is stale: run `make generate`", file=sys.stderr)
        return 1 if stale() else 0
    for path, content in generated().items():
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
