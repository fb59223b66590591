"""Tars by webdataset's rules, and tars from elsewhere."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from dmd_api.errors import BadInputError
from dmd_trainer.conditions import tables
from dmd_trainer.data.formats import tar as tars
from dmd_trainer.data.shard import one_caption
from tests.trainer.data.sources import captions, grey, labels, levels, opened, write_tar

JUNK = b"\0\5\x16\7" + bytes(99)


def test_a_suffix_is_all_that_follows_the_first_dot(tmp_path: Path) -> None:
    members = [
        member
        for i in range(3)
        for member in ((f"{i}.depth.png", grey(9)), (f"{i}.png", grey(100 + i)), (f"{i}.seg.cls", b"7"))
    ]
    images = opened(write_tar(tmp_path / "a.tar", members))
    assert levels(images) == [100, 101, 102]
    assert not images.labelled
    assert "3 *.depth.png in a.tar not used" in images.summary()


def test_names_with_further_dots_are_refused_rather_than_lost(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"photo_1.{i}_x.png", grey(i)) for i in range(5)])
    with pytest.raises(
        BadInputError, match=r"a\.tar cannot be read \(no name in it ends, after its first dot, in \.png"
    ):
        opened(path)
    two = write_tar(tmp_path / "b.tar", [("v1.jpg", grey(1)), ("v1.png", grey(2))])
    with pytest.raises(BadInputError, match=r"v1 has a second picture, v1\.png"):
        opened(two)


def test_folders_belong_to_keys_and_suffixes_have_no_case(tmp_path: Path) -> None:
    members = [("./a/0.PNG", grey(1)), ("./a/0.CLS", b"3\n"), ("b.c/0.png", grey(2)), ("b.c/0.cls", b"\xef\xbb\xbf4")]
    images = opened(write_tar(tmp_path / "a.TAR", members))
    assert (levels(images), labels(images)) == ([1, 2], [3, 4])


def test_captions_are_texts_or_in_the_json_of_img2dataset(tmp_path: Path) -> None:
    described = json.dumps({"caption": "two\n", "url": "u"}).encode()
    members = [
        *(("0.png", grey(0)), ("0.txt", b"\xef\xbb\xbfone\r\n"), ("0.json", described)),
        *(("1.png", grey(1)), ("1.json", described)),
        *(("2.png", grey(2)), ("2.json", b"[1]")),
        *(("3.png", grey(3)), ("3.json", b'{"caption": ["a", "b"]}')),
        *(("4.png", grey(4)), ("4.json", b'{"caption": NaN}')),
    ]
    images = opened(write_tar(tmp_path / "a.tar", members))
    assert captions(images) == ["one", "two", "", one_caption(["a", "b"], "3.json"), ""]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("0.json", b'{"caption": 5}', r"0\.json: 5 is no text"),
        ("0.json", b"{", r"0\.json: Expecting"),
        ("0.json", b"[" * 100_000, r"0\.json: maximum recursion depth"),
        ("0.txt", "grün".encode("latin-1"), r"0\.txt: .*utf-8"),
        ("0.txt", b"x" * (tars.MAX_BESIDE + 1), "no text is so long"),
        ("0.cls", b"dog", r"0\.cls holds no number"),
        ("0.cls", b"9" * 5000, r"0\.cls holds no number"),
    ],
)
def test_what_is_beside_a_picture_is_refused_by_name(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.png", grey(0)), (name, content)])
    with pytest.raises(BadInputError, match=rf"spec\.data\.images: .*a\.tar cannot be read \(.*{complaint}"):
        opened(path)


def test_what_macos_adds_and_links_are_left_out(tmp_path: Path) -> None:
    members = [
        member
        for i in range(3)
        for member in (
            (f"._{i}.png", JUNK),
            (f"{i}.png", grey(i)),
            (f"._{i}.cls", JUNK),
            (f"{i}.cls", str(i).encode()),
            (f"__MACOSX/{i}.png", JUNK),
        )
    ]
    path = write_tar(tmp_path / "a.tar", [*members, (".DS_Store", JUNK)])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    images = opened(path)
    assert (levels(images), labels(images)) == ([0, 1, 2], [0, 1, 2])
    assert "10 hidden files in a.tar not used; 1 links and devices in a.tar not used" in images.summary()


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_their_headers(kind: int, tmp_path: Path) -> None:
    stem = "größe-" * 40
    path = write_tar(tmp_path / "a.tar", [(f"{stem}/0.png", grey(5)), (f"{stem}/0.cls", b"1")], format=kind)
    assert (levels(opened(path)), labels(opened(path))) == ([5], [1])


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_gzip_is_undone_whatever_the_name(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / name, [(f"{i}.png", grey(i)) for i in range(3)], "w:gz")
    assert levels(opened(path)) == [0, 1, 2]


def test_bombs_are_refused_before_they_fill_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FREE_EXPANSION", 2**20)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(BadInputError, match=r"a\.tar\.gz cannot be read \(it expands to more than"):
        opened(path)
    assert list((tmp_path / "scratch").rglob("*.p*")) == []


def test_sparse_and_huge_members_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.png")
    info.size = tars.MAX_PICTURE + 1
    huge = tmp_path / "huge.tar"
    with huge.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(2 * tars.MAX_PICTURE)
    with pytest.raises(BadInputError, match=r"0\.png has 268,435,457 bytes"):
        opened(huge)
    sparse = tarfile.TarInfo("0.png")
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "99999999999", "GNU.sparse.name": "0.png"}
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO())
    with pytest.raises(BadInputError, match="stored as a sparse file"):
        opened(tmp_path / "sparse.tar")


def test_an_end_that_is_missing_or_comes_early_is_noticed(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [(f"{i}.png", grey(i)) for i in range(3)]).read_bytes()
    second = whole.index(b"1.png")
    for damage, complaint in (
        (whole[:second], "it is truncated"),  # where tarfile sees nothing wrong
        (whole[:second] + b"\xff" + whole[second + 1 :], f"damaged at byte {second:,}"),
        (whole + whole, "there is more behind its end"),
    ):
        path = tmp_path / "a.tar"
        path.write_bytes(damage)
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) in (1, 3)
        with pytest.raises(BadInputError, match=complaint):
            opened(path)
