"""Prompts, read from text, JSON lines or parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

from dmd_api.errors import BadInputError
from dmd_api.spec import Prompts
from dmd_trainer.runtime.fetch import local_path

COLUMNS = ("text", "caption", "prompt")
"""The columns or keys that hold a text, the first that is there; images' captions go by the same names."""
SUFFIXES = (".txt", ".jsonl", ".parquet")


def read_prompts(prompts: Prompts, scratch: Path) -> list[str]:
    """All prompts that the manifest names, in the order of their files; empty ones are left out.

    Raises:
        BadInputError: there are none, a file cannot be read, or it has no such column.
    """
    path = local_path(prompts.uri, scratch)
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
    found = [text.strip() for file in files for text in _read(file, prompts)]
    found = [text for text in found if text]
    if not found:
        raise BadInputError(f"{prompts.uri}: there are no prompts in it; give .txt, .jsonl or .parquet with some text")
    return found


def _read(file: Path, prompts: Prompts) -> Iterator[str]:
    if file.suffix not in SUFFIXES:
        raise BadInputError(f"{prompts.uri}: {file.name} is neither of {', '.join(SUFFIXES)}")
    try:
        match file.suffix:
            case ".txt":
                yield from file.read_text(encoding="utf-8").splitlines()
            case ".jsonl":
                for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                    if line.strip():
                        yield _of_row(json.loads(line), prompts, f"{file.name}, line {number}")
            case ".parquet":
                import pyarrow.parquet as parquet

                names = parquet.read_schema(file).names
                column = _column(names, prompts, file.name)
                for value in parquet.read_table(file, columns=[column])[column].to_pylist():
                    yield str(value) if value is not None else ""
    except (OSError, ValueError) as error:  # a JSON or Unicode error, and pyarrow's, are ValueErrors
        raise BadInputError(f"{prompts.uri}: {file.name} cannot be read ({error})") from error


def _of_row(row: object, prompts: Prompts, where: str) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise BadInputError(f"{prompts.uri}: {where}: is neither an object nor a string")
    return str(row[_column(list(row), prompts, where)] or "")


def _column(names: list[str], prompts: Prompts, where: str) -> str:
    wanted = COLUMNS if prompts.column is None else (prompts.column,)
    for name in wanted:
        if name in names:
            return name
    raise BadInputError(
        f"{prompts.uri}: {where}: has no {' or '.join(wanted)} (it has {', '.join(names)}); set data.prompts.column"
    )
