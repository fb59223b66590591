"""Reads the manifest that a command's FILE names; `-` is standard input."""

import sys
from pathlib import Path

from dmd_api.loading import ManifestError, Problem, load_manifest, parse_yaml
from dmd_api.manifest import DMDDistillation

STANDARD_INPUT = Path("-")


def read_manifest(file: Path) -> DMDDistillation:
    """Reads and checks it.

    Raises:
        ManifestError: there is none, or it is wrong.
    """
    if file != STANDARD_INPUT:
        return load_manifest(file)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError([Problem("", "standard input: cannot be read: it is not UTF-8 text")]) from error
    return parse_yaml(text, "standard input")
