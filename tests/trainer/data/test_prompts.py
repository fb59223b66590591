"""Prompts in every kind of file: lists are taken apart, what is no text is refused by its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd_api.errors import BadInputError
from dmd_api.spec import Prompts
from dmd_trainer.conditions.prompts import read_prompts
from tests.trainer.data.sources import write_folder


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: write_folder(path.parent, {path.name: content}) and None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.parquet", table(caption=[["a cat", "two cats"], ["dog"], None]), ["a cat", "two cats", "dog"]),
        ("a.parquet", table(text=[b"a cat", b"dog"]), ["a cat", "dog"]),
        ("a.parquet", table(text=pa.array(["x", "y", "x"]).dictionary_encode()), ["x", "y", "x"]),
        ("a.jsonl", text('{"caption": ["a", "b"]}\n["c", "d"]\n'.replace('["c", "d"]', '"c"')), ["a", "b", "c"]),
        ("a.jsonl", text('\ufeff{"text": NaN}\r\n\r\n{"text": "x"}\r\n{"text": null}'), ["x"]),
        ("a.jsonl", text('{"text": "one\u2028two\x85three"}'), ["one\u2028two\x85three"]),
        ("a.txt", text("\ufeffone\r\ntwo\x0cpages\rthree\n\n"), ["one", "two\x0cpages", "three"]),
        ("a.csv", text('id,prompt\n1,"a, b"\n2,\n3,c\n'), ["a, b", "c"]),
        ("A.TXT", text("one"), ["one"]),
    ],
)
def test_what_is_a_text_is_a_prompt(
    name: str, write: Callable[[Path], None], expected: list[str], tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert read_prompts(Prompts(uri=(tmp_path / name).as_uri()), tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "write", "complaint"),
    [
        ("a.parquet", table(text=[{"en": "a", "de": "b"}]), "struct<.* is no text"),
        ("a.parquet", table(text=[1, 2]), "row 0: 1 is no text but of type int"),
        ("a.parquet", table(title=["x"]), "it has no text or caption or prompt, but title"),
        ("a.jsonl", text('"x"\n[1]\n'), "line 2: it is neither an object nor a string"),
        ("a.jsonl", text('{"text": {"en": "x"}}'), "line 1: .* is no text"),
        ("a.jsonl", text('{"text": true}'), "line 1: True is no text"),
        ("a.jsonl", text('{"text": "\\ud800"}'), "line 1: .*surrogates"),
        ("a.jsonl", text('"x"\n' + "[" * 100_000), "line 2: maximum recursion depth"),
        ("a.jsonl", text("x" * 2_000_000), "line 1 has more than 1,048,576 characters"),
        ("a.txt", text("größer".encode("latin-1")), "utf-8"),
        ("a.txt", text("größer".encode("utf-16")), "utf-8"),
        ("a.txt", text("x" * 2_000_000), "line 1 has more than"),
        ("a.csv", text("prompt\na, b\n"), "line 2 has more fields"),
    ],
)
def test_what_is_none_is_refused_by_its_place(
    name: str, write: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    field = "spec.evaluation.prompts"
    with pytest.raises(
        BadInputError, match=rf"{field}: .*{name} cannot be read \(.*{complaint}.*correct or replace it"
    ):
        read_prompts(Prompts(uri=(tmp_path / name).as_uri()), tmp_path, field)


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "set", {"._a.txt": b"\0\xff", ".cache/b.txt": "no", "b/a.txt": "yes", "__MACOSX/a.txt": "no"}
    )
    assert read_prompts(Prompts(uri=(tmp_path / "set").as_uri()), tmp_path) == ["yes"]
