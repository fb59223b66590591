"""Parquet: a row an image, with columns of labels and captions."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_trainer.conditions.prompts import COLUMNS
from dmd_trainer.data.shard import Entry, Shard

LABEL_COLUMNS = ("label", "class", "class_labels")
ROWS_AT_ONCE = 64
"""Rows of the local copy that lie together: one random access maps so many."""


class Parquet(Shard):
    """A parquet file: `image` (bytes, or Hugging Face's {bytes, path}), and maybe columns of labels and captions.

    Parquet has no access to single rows: on first use it is rewritten as an Arrow file, which is mapped.
    """

    suffixes = (".parquet",)

    @cached_property
    def _arrow(self) -> Path:
        path = self.files.scratch / f"{self.key}.arrow"
        if not path.exists():
            self._rewrite(path)
        return path

    def _rewrite(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        schema = pa.schema({"image": pa.large_binary(), "label": pa.int64()})
        try:
            with pq.ParquetFile(self.files.fetch(self.key)) as source:
                label = self._label_column(source.schema_arrow)
                columns = ["image", label] if label else ["image"]
                with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
                    for batch in source.iter_batches(ROWS_AT_ONCE, columns=columns):
                        images = batch.column("image")
                        if pa.types.is_struct(images.type):
                            images = images.field("bytes")
                        labels = batch.column(label).cast(pa.int64()) if label else pa.nulls(len(batch), pa.int64())
                        rows = pa.record_batch([images.cast(pa.large_binary()), labels], schema=schema)
                        out.write_batch(rows)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise self.unreadable(error) from error
        partial.replace(path)

    def _label_column(self, schema: Any) -> str | None:
        import pyarrow as pa

        if "image" not in schema.names:
            raise BadInputError(
                f"{self.files.uri}: {self.key} has no column image (it has {', '.join(schema.names)}); rename its own"
            )
        found = [n for n in LABEL_COLUMNS if n in schema.names and pa.types.is_integer(schema.field(n).type)]
        return found[0] if found else None

    def count(self) -> int:
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(self.files.fetch(self.key)).num_rows)
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    @cached_property
    def labelled(self) -> bool:
        import pyarrow.parquet as pq

        try:
            return self._label_column(pq.read_schema(self.files.fetch(self.key))) is not None
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    @cached_property
    def captions(self) -> list[str] | None:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.files.fetch(self.key)) as source:
                found = [name for name in COLUMNS if name in source.schema_arrow.names]
                if not found:
                    return None
                return [str(value or "") for value in source.read(found[:1]).column(0).to_pylist()]
        except (OSError, ValueError) as error:
            raise self.unreadable(error) from error

    def entry(self, index: int) -> Entry:
        import pyarrow as pa

        # Opened each time: of thousands of shards each would hold a file open.
        with pa.memory_map(str(self._arrow)) as source:
            batch = pa.ipc.open_file(source).get_batch(index // ROWS_AT_ONCE)
            row = index % ROWS_AT_ONCE
            image, label = batch.column("image")[row].as_py(), batch.column("label")[row].as_py()
        # A row without bytes is one that does not decode.
        return Entry(f"{self.key}, row {index}", image or b"", label)
