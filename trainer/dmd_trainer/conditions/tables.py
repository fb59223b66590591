"""Tables that users give, row by row: JSON lines, CSV and parquet, at a bounded cost."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_LINE = 2**20
"""Characters of a line, which is a text or a row."""
MAX_ROWS = 20_000_000
"""Rows of a file: a parquet file of a kilobyte can say that it has billions."""
ROWS_READ, ROWS_AT_ONCE = 65_536, 256
"""Rows that are read together, their texts as a dictionary; and those whose texts are written out together, which are a
quarter of a gigabyte where all are as long as they may be."""
MAX_EXPANSION, FREE_EXPANSION = 100, 2**28
"""A file may expand to a hundred times its size, and to 256 MiB in any case; pictures and texts never do."""


def text_lines(path: Path) -> Iterator[str]:
    r"""The lines of a file in UTF-8, with `\n` for whatever ends them, and without a byte order mark.

    Raises:
        ValueError: it is not UTF-8, or a line has more than a million characters.
    """
    # Not str.splitlines, which takes U+2028 and others for ends of lines: JSON has them inside of texts.
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(f"line {number} has more than {MAX_LINE:,} characters")
            yield line


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a .jsonl, .csv or .parquet file, and where each is, for messages.

    Rows of CSV and parquet are dictionaries, those of JSON lines whatever is in the line.

    Args:
        path: the file.
        columns: those that are read of a parquet file, where they are there; of others all are.

    Raises:
        ValueError: a row cannot be read; parquet's library raises its own errors, too.
    """
    match path.suffix.lower():
        case ".jsonl":
            for number, line in enumerate(text_lines(path), start=1):
                if line.strip():
                    yield f"line {number}", _json(line, number)
        case ".csv":
            reader = csv.DictReader(text_lines(path), strict=True)
            for row in reader:
                if None in row:
                    raise ValueError(f"line {reader.line_num} has more fields than the header: quote texts with commas")
                yield f"line {reader.line_num}", row
        case ".parquet":
            there = [name for name in columns if name in column_names(path)]
            for number, values in enumerate(zip(*(column_values(path, name) for name in there), strict=True)):
                yield f"row {number}", dict(zip(there, values, strict=True))
        case other:
            raise ValueError(f"{other} is no table")


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error


def open_parquet(path: Path, column: str | None = None) -> "pq.ParquetFile":
    """A parquet file, whose pages are held against the checksums that it declares.

    Args:
        path: the file.
        column: one whose texts are left as a dictionary: each is in memory once, however many rows have it.

    Raises:
        ValueError: it has too many rows; pyarrow raises its own errors at a damaged file.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, page_checksum_verification=True)
    count, leaves = file.metadata.num_rows, [file.schema.column(n) for n in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.path.split(".")[0] == column and leaf.physical_type == "BYTE_ARRAY"]
    if not 0 <= count <= MAX_ROWS:
        file.close()
        raise ValueError(f"it says that it has {count:,} rows; at most {MAX_ROWS:,} are read")
    if texts:
        file.close()
        file = pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts)
    return file


def column_names(path: Path) -> list[str]:
    """The names of a parquet file's columns."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def column_values(path: Path, column: str) -> Iterator[Any]:
    """The values of a parquet file's column of numbers, of texts, or of lists of these: as many as the file has rows.

    Raises:
        ValueError: it holds something else, a text is too long, or they expand to far more than the file has.
    """
    with open_parquet(path, column) as file:
        count, left = 0, expanded_limit(path.stat().st_size)
        for batch in file.iter_batches(ROWS_READ, columns=[column]):
            (values,) = batch.columns
            left -= _bytes_of_texts(values)
            if left < 0:
                raise ValueError(f"the texts of column {column} expand to far more than the file")
            count += len(values)
            for start in range(0, len(values), ROWS_AT_ONCE):
                yield from values.slice(start, ROWS_AT_ONCE).to_pylist()
        if count != file.metadata.num_rows:
            raise ValueError(f"it has {count} rows, but says {file.metadata.num_rows}")


def _bytes_of_texts(values: "pa.Array") -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = values.flatten()
    if pa.types.is_nested(values.type):
        raise ValueError(f"{values.type} is no text")
    if not pa.types.is_dictionary(values.type):
        return int(values.nbytes)
    lengths = pc.binary_length(values.dictionary)
    if (pc.max(lengths).as_py() or 0) > MAX_LINE:
        raise ValueError(f"a text has more than {MAX_LINE:,} bytes")
    return int(pc.sum(lengths.take(values.indices)).as_py() or 0)


def expanded_limit(size: int) -> int:
    """How many bytes a file of `size` bytes may expand to."""
    return FREE_EXPANSION + MAX_EXPANSION * size
