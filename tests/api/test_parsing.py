"""JSON and YAML of others: what is too much or wrong is refused, soon and in words."""

import io
import itertools
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from dmd_api.errors import BadInputError
from dmd_api.loading import MOST_PROBLEMS, ManifestError, load_manifest, parse_manifest, read_manifest
from dmd_api.parsing import (
    DEEPEST,
    LARGEST_JSON,
    LARGEST_YAML,
    parse_json,
    parse_model,
    parse_yaml,
    read_json_object,
)


def grown(step: str) -> str:
    """YAML in which each of nine values stands for nine of the one before it."""
    names = "abcdefghij"
    return "a: &a {x: 1, y: 2}\n" + "".join(
        f"{name}: &{name} " + step.format(", ".join([f"*{before}"] * 9)) + "\n"
        for before, name in itertools.pairwise(names)
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "line 1, column 65: not valid YAML: it is nested more than 64 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(700)), "nested more than 64 levels deep"),
        ("- " * 5000, "nested more than 64 levels deep"),
        ("a: &a [1]\n" + "".join(f"b{i}: &b{i} [*{f'b{i - 1}' if i else 'a'}]\n" for i in range(99)), "64 levels deep"),
        (grown("[{}]"), "more than 50000 values, with its aliases written out"),
        (grown("{{<<: [{}]}}"), "more than 50000 values, with its aliases written out"),
        ("[" + "a, " * 60_000 + "]", "more than 50000 values"),
        ("a: &a [*a]", "line 1, column 8: not valid YAML: the alias *a is within what it stands for"),
        ("- &a [1]\n---\n- &a {b: *a}", "the alias *a is within what it stands for"),
        ("a: *b", "undefined alias"),
        ("a: 1\na: 2", "line 2, column 1: not valid YAML: the key 'a' appears twice"),
        ("x: {b: 1, b: 2}", "the key 'b' appears twice"),
        ('1: a\n"1": b', "the key '1' appears twice"),
        ("? [a]\n: b", "a key must be text"),
        ("a: 2026-02-30", "'2026-02-30' is no timestamp"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!bool x", "'x' is no bool"),
        ("a: " + "9" * 5000, "is no int"),
        ("a: 0x" + "f" * 5000, "is no int"),
        ("a: 1" + ":10" * 5000, "is no int"),
        ('a: "\\ud800"', "is no str"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: \0", "unacceptable character"),
        ("a: [", "expected the node content"),
    ],
)
def test_yaml_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_yaml(text, "FILE")
    assert said in caught.value.message
    assert caught.value.message.startswith("FILE")
    assert len(caught.value.message) < 300


def test_yaml_that_people_write_is_read() -> None:
    text = "w: {podTemplate: &gpus {spec: {a: [1e-5, yes, ~]}}}\np: {podTemplate: *gpus, 1: x, on: y}\n---\n"
    (document,) = parse_yaml(text, "FILE")
    template = {"spec": {"a": [1e-5, True, None]}}
    assert document == {"w": {"podTemplate": template}, "p": {"podTemplate": template, "1": "x", "on": "y"}}


def test_a_manifest_has_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_bytes(b"# " + b"x" * LARGEST_YAML)
    for read in (lambda: load_manifest(path), lambda: load_manifest("/dev/zero")):
        with pytest.raises(ManifestError, match="is larger than 256 KiB; is it the right file"):
            read()
    with pytest.raises(ManifestError, match="standard input: is larger than 256 KiB"):
        read_manifest(io.BytesIO(b"x" * (LARGEST_YAML + 1)), "standard input")
    with pytest.raises(ManifestError, match="cannot be read: it is not UTF-8 text"):
        read_manifest(io.BytesIO(b"a: \xff"), "standard input")
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        load_manifest(tmp_path)


def test_a_flood_of_problems_is_cut() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest({f"{'k' * 500}{number}": 1 for number in range(5000)})
    assert len(caught.value.problems) == MOST_PROBLEMS + 1
    assert "more problems" in str(caught.value)
    assert len(str(caught.value)) < 20_000


class Model(BaseModel):
    step: int


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is nested more than 64 levels deep"),
        ('{"a":' * 100_000, "is nested more than 64 levels deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "is nested more than 64 levels deep"),
        (" " * (LARGEST_JSON + 1), "is larger than 4 MiB"),
        ("1" * 5000, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        ("[]", "is no Model that this version reads (all of it"),
        ('{"step": "x"}', "is no Model that this version reads (step: "),
    ],
)
def test_json_is_refused_with_its_file(text: str | bytes, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_model(Model, text, "FILE")
    assert caught.value.message.startswith(f"FILE: {said}")


def test_json_is_read_up_to_its_bounds(tmp_path: Path) -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parse_json(deep, "FILE")) == deep
    assert parse_model(Model, b'{"step": 3}', "FILE").step == 3
    path = tmp_path / "config.json"
    path.write_text('{"a": [1]}')
    assert read_json_object(path) == {"a": [1]}
    path.write_text("[1]")
    with pytest.raises(BadInputError, match=r"config\.json: is not a JSON object"):
        read_json_object(path)
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_json_object(tmp_path)
