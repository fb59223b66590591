"""Writes what is generated from the models: the CRD and the manifest's reference.

python -m dmd_api.generate            writes
python -m dmd_api.generate --check    says whether they are current, exit code 1 if not
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from dmd_api.crd import GROUP, PLURAL, crd, spec_schema

ROOT = Path(__file__).resolve().parents[2]
NOTICE = "# Generated from crds/dmd_api by `make generate`; do not edit.\n"


def generated() -> dict[Path, str]:
    """Every generated file with its content."""
    return {
        ROOT / "crds" / f"{PLURAL}.{GROUP}.yaml": NOTICE + yaml.safe_dump(crd(), sort_keys=False, width=120),
        ROOT / "docs" / "manifest.md": _reference(),
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
