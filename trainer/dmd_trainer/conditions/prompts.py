"""Prompts, read from text, JSON lines, CSV or parquet."""

from collections.abc import Iterator
from pathlib import Path

from dmd_api.errors import BadInputError
from dmd_api.spec import Prompts
from dmd_trainer.conditions.tables import column_names, rows, text_lines
from dmd_trainer.conditions.texts import COLUMNS, text_column, texts_in
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.reading import is_left_out, reading

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")


def read_prompts(prompts: Prompts, scratch: Path, field: str = "spec.data.prompts") -> list[str]:
    """All prompts that the manifest names, in the order of their files; empty ones are left out.

    Args:
        prompts: where they are.
        scratch: where remote files are copied to.
        field: the manifest's, for messages.

    Raises:
        BadInputError: there are none, a file cannot be read, or it has no such column.
    """
    path = local_path(prompts.uri, scratch)
    found: list[str] = []
    for file in _files(path):
        with reading(f"{field}: {prompts.uri}: {file.name}", "correct or replace it"):
            found += _read(file, prompts.column)
    if not found:
        raise BadInputError(
            f"{field}: {prompts.uri}: there are no prompts in it; give {', '.join(SUFFIXES)} with some text"
        )
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    below = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p for p in below if not is_left_out(p.relative_to(path).as_posix()))


def _read(file: Path, wanted: str | None) -> Iterator[str]:
    """The prompts of a file; a list of several is taken apart.

    Raises:
        ValueError: it is of another kind, has no such column, or something else in it.
    """
    columns: list[str] = []
    match file.suffix.lower():
        case ".txt":
            for line in text_lines(file):
                yield from texts_in(line)
            return
        case ".parquet":
            columns = [_column(column_names(file), wanted)]
        case suffix if suffix not in SUFFIXES:
            raise ValueError(f"it is neither of {', '.join(SUFFIXES)}")
    for where, row in rows(file, columns):
        try:
            yield from texts_in(row[_column(list(row), wanted)] if isinstance(row, dict) else _bare(row))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _bare(row: object) -> str:
    if not isinstance(row, str):
        raise ValueError("it is neither an object nor a string")
    return row


def _column(names: list[str], wanted: str | None) -> str:
    column = text_column(names, wanted)
    if column is None:
        sought = wanted or " or ".join(COLUMNS)
        raise ValueError(f"it has no {sought}, but {', '.join(names)}: set prompts.column")
    return column
