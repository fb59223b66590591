"""Parquet: a row an image, with columns of labels and captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmd_trainer.conditions.tables import column_values, expanded_limit, open_parquet
from dmd_trainer.conditions.texts import text_column, texts_in
from dmd_trainer.data.shard import LABELS, Entry, Shard, one_caption
from dmd_trainer.runtime.reading import replaced

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE = "image"
ROWS_AT_ONCE = 64
"""Rows of the local copy that lie together: one random access maps so many."""
BYTES_AT_ONCE = 2**28


@dataclass(frozen=True)
class _Columns:
    """The columns that are read.

    Attributes:
        image: of encoded pictures.
        label: of integers.
        caption: of texts.
        others: all others.
    """

    image: str
    label: str | None
    caption: str | None
    others: list[str]


class Parquet(Shard):
    """A parquet file: pictures' bytes, or Hugging Face's {bytes, path}, and maybe columns of labels and captions.

    Pictures are in the column `image`, or in the only one of Hugging Face's kind. Parquet has no access to single rows:
    on first use it is rewritten as an Arrow file, which is mapped.
    """

    suffixes = (".parquet",)

    @property
    def _path(self) -> Path:
        return self.files.fetch(self.key)

    @cached_property
    def _arrow(self) -> Path:
        path = self.files.scratch / f"{self.key}.arrow"
        if not path.exists():
            with self.reading():
                self._rewrite(path)
        return path

    def _rewrite(self, path: Path) -> None:
        import pyarrow as pa

        schema, image = pa.schema({"image": pa.large_binary()}), self._columns.image

        def plain() -> Iterator[pa.RecordBatch]:
            with open_parquet(self._path) as source:
                for column in _pictures(source, self._path, image):
                    yield pa.record_batch([_encoded(column)], schema=schema)

        with replaced(path) as file, pa.ipc.new_file(file, schema) as out:
            for rows in _of_length(ROWS_AT_ONCE, plain(), schema):
                out.write_batch(rows)

    @cached_property
    def _columns(self) -> _Columns:
        import pyarrow as pa

        with self.reading():
            with open_parquet(self._path) as source:
                schema = source.schema_arrow
            hugging_faces = [field.name for field in schema if pa.types.is_struct(field.type) and _bytes_of(field.type)]
            if IMAGE not in schema.names and len(hugging_faces) != 1:
                raise ValueError(f"it has no column {IMAGE}, but {', '.join(schema.names)}: rename its own")
            image = IMAGE if IMAGE in schema.names else hugging_faces[0]
            if not _holds_pictures(schema.field(image).type):
                raise ValueError(f"column {image} holds {schema.field(image).type}, not the bytes of picture files")
        label = next((n for n in LABELS if n in schema.names and pa.types.is_integer(schema.field(n).type)), None)
        caption = text_column(schema.names)
        return _Columns(image, label, caption, [n for n in schema.names if n not in (image, label, caption)])

    def count(self) -> int:
        with self.reading(), open_parquet(self._path) as source:
            return int(source.metadata.num_rows)

    @cached_property
    def labels(self) -> list[int | None] | None:
        with self.reading():
            return None if self._columns.label is None else list(column_values(self._path, self._columns.label))

    @cached_property
    def captions(self) -> list[str] | None:
        column = self._columns.caption
        found: list[str] = []
        with self.reading():
            for row, value in enumerate(column_values(self._path, column) if column is not None else ()):
                try:
                    found.append(one_caption(texts_in(value), f"{self.key}, row {row}"))
                except ValueError as error:
                    raise ValueError(f"row {row}, column {column}: {error}") from error
        return found if any(found) else None

    @property
    def notes(self) -> list[str]:
        others = self._columns.others
        return [f"columns of {self.key} not used: {', '.join(others)}"] if others else []

    def entry(self, index: int) -> Entry:
        import pyarrow as pa

        number, row = divmod(index, ROWS_AT_ONCE)
        # Opened each time: of thousands of shards each would hold a file open.
        with self.reading(), pa.memory_map(str(self._arrow)) as source:
            file = pa.ipc.open_file(source)
            # A slice is empty where there is no such row.
            rows = file.get_batch(number).slice(row, 1).to_pylist() if number < file.num_record_batches else []
        if not rows:
            raise IndexError(index)
        # A row without bytes is one that does not decode.
        return Entry(f"{self.key}, row {index}", rows[0]["image"] or b"")


def _bytes_of(kind: Any) -> Any:
    """The type of the field `bytes` of a struct, where it has one."""
    return next((kind.field(n).type for n in range(kind.num_fields) if kind.field(n).name == "bytes"), None)


def _holds_pictures(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        kind = _bytes_of(kind)
    return kind is not None and (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _encoded(column: "pa.Array") -> "pa.Array":
    """A column of encoded pictures, in whichever type, as large_binary."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type):
        # Not `field`, which forgets which of the structs are null.
        column = column.flatten()[column.type.get_field_index("bytes")]
    return column.cast(pa.large_binary())


def _of_length(length: int, batches: "Iterator[pa.RecordBatch]", schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    """The same rows in batches of a length, the last maybe shorter: a reader's end where its file's parts do."""
    import pyarrow as pa

    rest = schema.empty_table()
    for batch in batches:
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch])])
        while len(rest) >= length:
            yield from rest[:length].combine_chunks().to_batches()
            rest = rest[length:]
    yield from rest.combine_chunks().to_batches()


def _pictures(file: "pq.ParquetFile", path: Path, column: str) -> "Iterator[pa.Array]":
    """A column, at most 64 rows at once, and few enough that a quarter of a gigabyte holds them.

    Args:
        file: of `open_parquet`.
        path: the file's.
        column: its name.

    Raises:
        ValueError: they expand to far more than the file has.
    """
    # Nothing is asked of single columns' metadata: pyarrow ends the process where that is damaged.
    sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
    stored = path.stat().st_size
    # A dictionary stores a value once however many rows have it, each as large as all of the group at the worst:
    # decompressed sizes bound what is read at once, and the rows themselves are counted.
    at_once = min(ROWS_AT_ONCE, max(1, BYTES_AT_ONCE // max([1, *sizes])))
    left = limit = expanded_limit(stored)
    if sum(sizes) <= limit:
        for batch in file.iter_batches(at_once, columns=[column]):
            left -= batch.nbytes
            if left < 0:
                break
            yield batch.column(0)
        else:
            return
    raise ValueError(f"its {stored:,} bytes expand to more than {limit:,}")
