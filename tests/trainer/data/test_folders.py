"""Folders as other tools leave them: their classes, their annotations, and what does not belong to them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.data.class_folders import class_folders
from dmd_trainer.data.image_set import ImageSet
from dmd_trainer.data.shard import MAX_BESIDE, one_caption
from dmd_trainer.runtime.reading import is_left_out
from tests.trainer.data.sources import FIELD, captions, grey, labels, levels, opened, write_folder


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat", "dog", "cat"], [0, 1, 0]),
        (["10", "2", "0"], [10, 2, 0]),
        (["007", "010"], [7, 10]),
        (["n2", "n10"], [1, 0]),  # as torchvision's ImageFolder sorts them
        (["train/n0", "train/n1"], [0, 1]),
        (["data/train/1", "data/train/0"], [1, 0]),
        (["n0/images", "n1/images"], [0, 1]),
        (["dog", "dog/puppies", "cat"], [1, 1, 0]),
        (["train", "plane"], [1, 0]),  # CIFAR-100 has a class of trains
    ],
)
def test_classes_of_folders(folders: list[str], expected: list[int], tmp_path: Path) -> None:
    files = {f"{folder}/{number}.png": grey(number) for number, folder in enumerate(folders)}
    images = opened(write_folder(tmp_path / "set", files))
    by_level = dict(zip(levels(images), labels(images), strict=True))
    assert [by_level[number] for number in range(len(folders))] == expected


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["a.png", "dog/b.png"], "not every picture is in a folder"),
        (["train/n0/a.png", "val/n0/b.png"], "the folders train, val are no classes"),
        (["train/a.png", "test/b.png"], "the folders test, train are no classes"),
        (["animal/dog/a.png", "animal/cat/b.png", "vehicle/car/c.png"], "folders are nested, as in animal/cat"),
        (["1/a.png", "01/b.png"], "are the same number"),
    ],
)
def test_folders_that_are_no_classes_are_not_taken_for_them(keys: list[str], why: str, tmp_path: Path) -> None:
    assert why in str(class_folders(keys))
    images = opened(write_folder(tmp_path / "set", dict.fromkeys(keys, grey(1))))
    assert not images.labelled
    assert why in images.summary()


EDM = {"00000/img00000000.png": grey(0), "00000/img00000001.png": grey(1), "00001/img00001000.png": grey(2)}


def test_edms_labels(tmp_path: Path) -> None:
    content = {"labels": [[name.replace("/", "\\"), 6 - i] for i, name in enumerate(EDM)]}
    assert labels(opened(write_folder(tmp_path / "a", EDM | {"dataset.json": json.dumps(content)}))) == [6, 5, 4]
    # Where it has none, EDM's numbered folders are still no classes.
    for number, other in enumerate(['{"labels": null}', '{"images": 3}', "[]"]):
        images = opened(write_folder(tmp_path / str(number), EDM | {"dataset.json": other}))
        assert not images.labelled
        assert "no labels: dataset.json has none" in images.summary()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"labels": [["00000/img00000000.png", 6]]}', r"the label of 00000/img00000001\.png is None"),
        (json.dumps({"labels": [[name, 0.5] for name in EDM]}), "is 0.5, not a number"),
        (json.dumps({"labels": [[name, True] for name in EDM]}), "is True, not a number"),
        ('{"labels": 3}', "cannot be read"),
        ("[", "cannot be read"),
        ("[" * 100_000, "maximum recursion depth"),
    ],
)
def test_edms_labels_that_are_none_are_refused(content: str, complaint: str, tmp_path: Path) -> None:
    images = opened(write_folder(tmp_path / "a", EDM | {"dataset.json": content}))
    with pytest.raises(BadInputError, match=rf"{FIELD}: .*dataset\.json.*{complaint}.*; correct or remove it"):
        labels(images)


FOUR = {"a.png": grey(0), "train/b.png": grey(1), "train/c.jpg.png": grey(2), "train/x/d.png": grey(3)}


def test_metadata_of_every_kind_counts_from_its_own_folder(tmp_path: Path) -> None:
    rows = {"file_name": ["./c.jpg.png", "x\\d.png"], "caption": [["three", "drei"], None], "label": [2, 3]}
    root = write_folder(
        tmp_path / "set",
        FOUR
        | {
            "metadata.jsonl": '\ufeff{"file_name": "a.png", "text": "one\u2028line", "label": 0}\r\n\r\n',
            "train/metadata.csv": 'file_name,text,label\r\nb.png,"two, and\r\nmore",1\r\n',
        },
    )
    pq.write_table(pa.table(rows), root / "train" / "x" / ".." / "metadata.parquet")
    images = opened(root)
    assert captions(images) == [
        "one\u2028line",
        "two, and\nmore",
        one_caption(["three", "drei"], "train/c.jpg.png"),
        "",
    ]
    assert labels(images) == [0, 1, 2, 3]
    assert "3 of 4 captioned" in images.summary(captions=True)


def test_captions_in_files_of_their_own(tmp_path: Path) -> None:
    beside = {
        "a.txt": "\ufeffone\r\n",
        "train/b.caption": "two",
        "train/c.jpg.json": '{"caption": "three"}',
        "n.txt": "x",
    }
    assert captions(opened(write_folder(tmp_path / "set", FOUR | beside))) == ["one", "two", "three", ""]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("metadata.jsonl", '{"text": "x"}', "line 1 has no file_name"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": {"en": "x"}}', r"line 1: .* is no text but of type dict"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 5}', "line 1: 5 is no text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "\\ud800"}', "line 1: .*surrogates"),
        ("metadata.jsonl", '{"file_name": "z.png", "text": "x"}', r"none of the pictures .* z\.png"),
        ("metadata.jsonl", '{"file_name": "../../a.png", "text": "x"}', "none of the pictures"),
        ("metadata.jsonl", "[" * 100_000, "line 1: maximum recursion"),
        ("metadata.jsonl", "x" * 2_000_000, "line 1 has more than"),
        ("metadata.csv", "file_name;text\na.png;x\n", "line 2 has no file_name"),
        ("metadata.csv", "file_name,text\na.png,x, and y\n", "line 2 has more fields than the header"),
        ("metadata.csv", f'file_name,text\na.png,"{"x" * 200_000}"\n', "field larger than field limit"),
        ("metadata.csv", 'file_name,text\na.png,"x\n', "unexpected end of data"),
        ("a.txt", "x" * (MAX_BESIDE + 1), "it has more than"),
        ("a.json", "{", "Expecting property"),
    ],
)
def test_annotations_that_cannot_be_read_are_named(name: str, content: str, complaint: str, tmp_path: Path) -> None:
    images = opened(write_folder(tmp_path / "set", {"a.png": grey(0), name: content}))
    with pytest.raises(
        BadInputError, match=rf"{FIELD}: .*{name} cannot be read \(.*{complaint}.*; correct or remove it"
    ):
        captions(images)


def test_what_is_no_image_is_left_out_and_said(tmp_path: Path) -> None:
    files = {
        "a.png": grey(1),
        "._a.png": b"\0\5\x16\7",
        ".DS_Store": b"x",
        "Thumbs.db": b"x",
        "__MACOSX/a.png": b"x",
        ".ipynb_checkpoints/a-checkpoint.png": grey(2),
        "b.gif": b"GIF89a",
    }
    root = write_folder(tmp_path / "set", files)
    (root / "again").symlink_to(root)
    images = opened(root)
    assert levels(images) == [1]
    assert "6 other files left out: .DS_Store, ._a.png, .ipynb_checkpoints/a-checkpoint.png, ..." in images.summary()


def test_a_summary_says_what_was_found(tmp_path: Path) -> None:
    files = {f"{i}.png": grey(i) for i in range(9)} | {"broken.png": grey(9)[:40], "0.txt": "zero", "x.zip": b"x"}
    images = opened(write_folder(tmp_path / "set", files))
    assert len(levels(images)) == 9
    summary = images.summary(captions=True)
    for part in (
        f"{FIELD}: {images.uri}: 10 images in 10 .png, 1 .txt files",
        "8x8",
        "no labels: not every picture is in a folder of its class",
        "1 of 10 captioned",
        "1 other files left out: x.zip",
        "1 do not decode: broken.png (",
    ):
        assert part in summary


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no images there \(looked for .*; cifar10\.zip is none of them\)"):
        ImageSet(Location(uri=write_folder(tmp_path / "set", {"cifar10.zip": b"x"}).as_uri()), FIELD, tmp_path)


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("a/b.png", False),
        ("./a.png", False),
        ("a..b/c.d.png", False),
        ("../a.png", True),
        ("a/../../b.png", True),
        ("/etc/a.png", True),
        (".cache/a.png", True),
        ("a/__MACOSX/b.png", True),
    ],
)
def test_what_is_left_out_by_its_path(path: str, left_out: bool) -> None:
    assert is_left_out(path) == left_out
