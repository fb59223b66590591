"""The architecture of a manifest's teacher, found without its weights."""

import tempfile
from pathlib import Path

from dmd_api.manifest import DMDDistillation
from dmd_api.uris import parse_uri
from dmd_trainer.families.architecture import (
    Architecture,
    guess_architecture,
    known_architecture,
    read_architecture,
)
from dmd_trainer.runtime.fetch import local_path

ANNOTATION = "dmd-operator.io/architecture"


def architecture_of(manifest: DMDDistillation) -> Architecture | None:
    """Finds it in an annotation, in the teacher's folder, or in its published name; None where none of them says.

    Raises:
        BadInputError: the annotation names none that is known, or the folder is no diffusers pipeline.
    """
    uri = manifest.spec.teacher.uri
    if (name := manifest.metadata.annotations.get(ANNOTATION)) is not None:
        return known_architecture(name)
    if at_hand(manifest):
        with tempfile.TemporaryDirectory() as scratch:
            return read_architecture(local_path(uri, Path(scratch)))
    return guess_architecture(uri)


def at_hand(manifest: DMDDistillation) -> bool:
    """True for a teacher on this machine."""
    return parse_uri(manifest.spec.teacher.uri).scheme in {"file", "builtin"}
