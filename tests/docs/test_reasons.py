"""Every reason that the operator writes is explained."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECIDING = (
    *("attempts", "decide", "endings", "health", "outcomes", "ownership", "reconcile", "run", "suspension", "waits"),
)
"""Modules that write conditions and events; the others read what Kubernetes writes."""
NOT_WRITTEN = {"Done", "ContainerCreating"}
"""A kind of outcome that has no condition of its own, and a word of the kubelet's that says nothing is wrong yet."""


def reasons() -> set[str]:
    found: set[str] = set()
    for module in DECIDING:
        tree = ast.parse((ROOT / "operator" / "dmd_operator" / f"{module}.py").read_text())
        values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found |= {text for text in values if isinstance(text, str) and re.fullmatch(r"(?:[A-Z][a-z]+)+", text)}
    return found - NOT_WRITTEN


def test_every_reason_is_in_the_operations_guide() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "operations").glob("*.md"))
    missing = sorted(reason for reason in reasons() if not re.search(rf"\b{reason}\b", pages))
    assert len(reasons()) > 30
    assert not missing
