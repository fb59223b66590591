"""Reads a manifest from a file; each problem is one line with the field's path and the remedy."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dmd_api.errors import BadInputError
from dmd_api.manifest import DMDDistillation
from dmd_api.parsing import parse_yaml, read_yaml_text
from dmd_api.text import neutral
from dmd_api.uris import masked

MOST_PROBLEMS = 50
"""Problems that are told at once."""
LONGEST_SHOWN = 60
"""Characters of what a manifest holds that a problem shows."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest.

    Attributes:
        path: the field, e.g. `spec.training.batchSize`; empty for the whole file.
        message: what is wrong with it and what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestError(BadInputError):
    """A manifest cannot be used; its text has one line a problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(neutral(str(problem)) for problem in problems))


DEFAULT_LEFT_OUT = "default_factory_not_called"
"""Pydantic's type of an error at a field whose default would have depended on one that is wrong."""


def load_manifest(path: str | Path) -> DMDDistillation:
    """Reads a manifest.

    Raises:
        ManifestError: the file is missing, is not one YAML document, or its content breaks the API's rules.
    """
    try:
        with Path(path).open("rb") as file:
            return read_manifest(file, str(path))
    except FileNotFoundError as error:
        raise ManifestError([Problem("", f"{path}: no such file; check the path")]) from error
    except OSError as error:
        raise ManifestError([Problem("", f"{path}: cannot be read: {error.strerror}")]) from error


def read_manifest(file: BinaryIO, source: str) -> DMDDistillation:
    """Reads a manifest from an open file.

    Args:
        file: has one YAML document.
        source: where it is from, for messages.

    Raises:
        ManifestError: it is not one YAML document, or its content breaks the API's rules.
        OSError: it cannot be read.
    """
    try:
        documents = parse_yaml(read_yaml_text(file, source), source)
    except BadInputError as error:
        raise ManifestError([Problem("", error.message)]) from error
    if len(documents) != 1:
        found = "is empty" if not documents else f"holds {len(documents)} documents"
        raise ManifestError([Problem("", f"{source}: {found}; write exactly one DMDDistillation in it")])
    return parse_manifest(documents[0], source)


def parse_manifest(content: object, source: str = "the manifest") -> DMDDistillation:
    """Validates parsed YAML or JSON as a manifest.

    Raises:
        ManifestError: it breaks the API's rules.
    """
    if not isinstance(content, dict):
        raise ManifestError([Problem("", f"{source}: is not a mapping; write apiVersion, kind, metadata and spec")])
    try:
        return DMDDistillation.model_validate(content)
    except ValidationError as error:
        # A default that depends on a field that is wrong is no problem of its own.
        errors = [details for details in error.errors(include_url=False) if details["type"] != DEFAULT_LEFT_OUT]
        problems = [_problem(details) for details in errors[:MOST_PROBLEMS]]
        if len(errors) > MOST_PROBLEMS:
            problems.append(Problem("", f"{len(errors) - MOST_PROBLEMS} more problems; mend these first"))
        raise ManifestError(problems) from error


def _problem(details: ErrorDetails) -> Problem:
    location = [part for part in details["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:LONGEST_SHOWN]}" if path else part[:LONGEST_SHOWN]
    match details["type"]:
        case "extra_forbidden":
            return Problem(path, _unknown_field(location))
        case "missing":
            return Problem(path, "is required and missing")
        case "literal_error":
            expected = details["ctx"]["expected"].replace("'", "")
            return Problem(path, f"is {_shown(details['input'])}; must be {expected}{_closest(details)}")
        case "rule":
            return Problem(path, details["msg"])
        case "value_error":
            return Problem(path, details["msg"].removeprefix("Value error, "))
    text = details["msg"].removeprefix("Input ").replace("Input ", "")
    text = text[0].lower() + text[1:]
    return Problem(path, f"{text}, but is {_shown(details['input'])}")


def _shown(value: object) -> str:
    text = masked(repr(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _closest(details: ErrorDetails) -> str:
    choices = re.findall(r"'([^']*)'", details["ctx"]["expected"])
    close = difflib.get_close_matches(str(details["input"]), choices, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_field(location: Sequence[int | str]) -> str:
    known = _field_names(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, 1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
    return f"is not a field of the API; {hint}"


def _field_names(location: Sequence[int | str]) -> list[str]:
    """The names of the fields at a place in the manifest."""
    model: type[BaseModel] = DMDDistillation
    for part in location:
        if isinstance(part, int):
            continue
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                found = _model_in(field.annotation)
                if found is not None:
                    model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
