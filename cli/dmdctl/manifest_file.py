"""Reads the manifest that a command's FILE names; `-` is standard input."""

import sys
from pathlib import Path

from dmd_api.loading import load_manifest
from dmd_api.loading import read_manifest as read_open_manifest
from dmd_api.manifest import DMDDistillation

STANDARD_INPUT = Path("-")


def read_manifest(file: Path) -> DMDDistillation:
    """Reads and checks it.

    Raises:
        ManifestError: there is none, or it is wrong.
    """
    if file == STANDARD_INPUT:
        return read_open_manifest(sys.stdin.buffer, "standard input")
    return load_manifest(file)
