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
BATCH_ROWS, BATCH_BYTES = 64, 2**28
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


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of a .jsonl, .csv or .parquet file, and where each is, for messages.

    Rows of CSV and parquet are dictionaries, those of JSON lines whatever is in the line.

    Args:
        path: the file.
        columns: of a parquet file; None: all.

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
            with open_parquet(path) as file:
                number = 0
                for batch in batches(file, path, list(columns or file.schema_arrow.names)):
                    for row in batch.to_pylist():
                        yield f"row {number}", row
                        number += 1
        case other:
            raise ValueError(f"{other} is no table")


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error


def open_parquet(path: Path) -> "pq.ParquetFile":
    """A parquet file, whose pages are held against the checksums that it declares.

    Raises:
        ValueError: it has too many rows; pyarrow raises its own errors at a damaged file.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, page_checksum_verification=True)
    count = file.metadata.num_rows
    if not 0 <= count <= MAX_ROWS:
        file.close()
        raise ValueError(f"it says that it has {count:,} rows; at most {MAX_ROWS:,} are read")
    return file


def batches(file: "pq.ParquetFile", path: Path, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
    """The rows of columns, at most 64 at once, and few enough that a quarter of a gigabyte holds them.

    Args:
        file: of `open_parquet`.
        path: the file's.
        columns: their names.

    Raises:
        ValueError: they expand to far more than the file has.
    """
    # Nothing is asked of single columns' metadata: pyarrow ends the process where that is damaged.
    sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
    stored = path.stat().st_size
    # A dictionary stores a value once however many rows have it, each as large as all of the group at the worst:
    # decompressed sizes bound what is read at once, and the rows themselves are counted.
    at_once = min(BATCH_ROWS, max(1, BATCH_BYTES // max([1, *sizes])))
    left = limit = expanded_limit(stored)
    if sum(sizes) <= limit:
        for batch in file.iter_batches(at_once, columns=list(columns)):
            left -= batch.nbytes
            if left < 0:
                break
            yield batch
        else:
            return
    raise ValueError(f"its {stored:,} bytes expand to more than {limit:,}")


def expanded_limit(size: int) -> int:
    """How many bytes a file of `size` bytes may expand to."""
    return FREE_EXPANSION + MAX_EXPANSION * size
