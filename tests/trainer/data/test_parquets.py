"""Parquet from elsewhere: columns of every type, row groups of every length, and files that expand."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd_api.errors import BadInputError
from dmd_trainer.conditions import tables
from dmd_trainer.data.shard import one_caption
from tests.trainer.data.sources import FIELD, captions, grey, labels, levels, opened

PICTURES = [grey(i) for i in range(150)]
HUGGING_FACES = [{"bytes": content, "path": None} for content in PICTURES]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PICTURES),
        pa.array(PICTURES, pa.large_binary()),
        pa.array(PICTURES, pa.binary_view()),
        pa.array(PICTURES).dictionary_encode(),
        pa.array(HUGGING_FACES),
        pa.array(HUGGING_FACES, pa.struct({"path": pa.string(), "bytes": pa.large_binary()})),
    ],
    ids=lambda column: str(column.type)[:40],
)
@pytest.mark.parametrize("group", [7, 100, 1000])
def test_pictures_of_every_type(column: Any, group: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column, "label": pa.array(range(150), pa.uint16())}), path, row_group_size=group)
    images = opened(path)
    assert levels(images) == list(range(150))
    assert labels(images) == list(range(150))


def test_the_only_column_of_hugging_faces_kind_is_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": HUGGING_FACES, "fine_label": list(range(150))}), path)
    images = opened(path)
    assert levels(images) == list(range(150))
    assert not images.labelled
    assert "columns of a.parquet not used: fine_label" in images.summary()


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"image": [[[1, 2], [3, 4]]]}, "column image holds list<.*, not the bytes of picture files"),
        ({"image": ["a.png"]}, "column image holds string"),
        ({"image": [{"path": "a.png"}]}, "column image holds struct<path: string>"),
        ({"image": [{"a": {"bytes": b"x"}}]}, "column image holds struct<a: struct"),
        ({"a": HUGGING_FACES[:1], "b": HUGGING_FACES[:1]}, "it has no column image, but a, b"),
    ],
)
def test_columns_without_pictures_are_refused(columns: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(BadInputError, match=rf"{FIELD}: .*a\.parquet cannot be read \({complaint}"):
        levels(opened(path))


def test_rows_without_bytes_do_not_decode(tmp_path: Path) -> None:
    rows = [HUGGING_FACES[3], None, {"bytes": None, "path": "a.png"}, HUGGING_FACES[5]]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    images = opened(tmp_path / "a.parquet")
    assert levels(images) == [3, 5]
    assert images.bad == ["a.parquet, row 1", "a.parquet, row 2"]


def test_captions_are_lists_bytes_or_missing(tmp_path: Path) -> None:
    def of(column: Any) -> list[str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table({"image": PICTURES[: len(column)], "text": column}), path)
        return captions(opened(path))

    assert of(["a", None, " ", "b "]) == ["a", "", "", "b"]
    assert of([b"a", b"b"]) == ["a", "b"]
    assert of(pa.array(["a", "b", "a"]).dictionary_encode()) == ["a", "b", "a"]
    lists = [["a", "b", "c"], [], None, ["d"]]
    assert of(lists) == [one_caption(texts or [], f"3.parquet, row {row}") for row, texts in enumerate(lists)]
    for column, complaint in (
        ([{"en": "a"}], "struct<en: .* is no text"),
        ([[{"en": "a"}]], "struct<en: .* is no text"),
        (["x" * (tables.MAX_LINE + 1)], "a text has more than"),
        ([1, 2], "row 0, column text: 1 is no text but of type int"),
        ([float("nan"), 2.5], "row 1, column text: 2.5 is no text"),
        ([b"\xff\xfe"], "row 0, column text: .*utf-8"),
    ):
        with pytest.raises(BadInputError, match=complaint):
            of(column)


def test_files_that_expand_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FREE_EXPANSION", 2**20)
    # One picture for ten thousand rows: a dictionary stores it once.
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array([grey(1) + bytes(2**16)]))
    pq.write_table(pa.table({"image": repeated, "text": ["x"] * 10_000}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [bytes(2**24)]}), tmp_path / "b.parquet", compression="zstd")
    for name in ("a.parquet", "b.parquet"):
        assert (tmp_path / name).stat().st_size < 2**18
        with pytest.raises(BadInputError, match=rf"{name} cannot be read \(its .* bytes expand to more than"):
            opened(tmp_path / name).entry(0)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * 2**16]))
    pq.write_table(pa.table({"image": [grey(1)] * 10_000, "text": texts}), tmp_path / "c.parquet")
    with pytest.raises(BadInputError, match="the texts of column text expand to far more than the file"):
        captions(opened(tmp_path / "c.parquet"))
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
    monkeypatch.setattr(tables, "MAX_ROWS", 9_999)
    with pytest.raises(BadInputError, match="it says that it has 10,000 rows"):
        opened(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", ["[", "[1]", '{"a.parquet": -1}', '{"a.parquet": "9"}', "[" * 100_000])
def test_counts_that_are_none_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": PICTURES[:1]}), tmp_path / "set" / "a.parquet")
    (tmp_path / "set" / "sizes.json").write_text(content)
    with pytest.raises(BadInputError, match=r"sizes\.json cannot be read .*; correct or remove it"):
        opened(tmp_path / "set")


def test_shards_in_nested_folders_have_their_own_counts(tmp_path: Path) -> None:
    for part in (range(3), range(3, 8)):
        folder = tmp_path / "set" / f"from-{part.start}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"image": [PICTURES[i] for i in part]}), folder / "a.parquet")
        (folder / "sizes.json").write_text(json.dumps({"a.parquet": len(part)}))
    assert levels(opened(tmp_path / "set")) == list(range(8))
