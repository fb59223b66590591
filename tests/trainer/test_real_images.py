"""Real images: every kind of source gives the same images by number; what is damaged is named, and skipped."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.data import image_set
from dmd_trainer.data.digits import load_digits_images
from dmd_trainer.data.emoji import load_emoji
from dmd_trainer.data.real_images import RealImages, open_real_images
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.storage import FileStorage, open_storage
from dmdctl.local.local_runner import free_port
from tests.servers import ACCESS_KEY, SECRET_KEY, start_s3
from tests.trainer.data.sources import write_folder
from tests.trainer.test_storage import make_bucket
from tests.trainer.text_teachers import make_sd

COUNT, PER_CLASS = 24, 3
LABELS = [i // PER_CLASS for i in range(COUNT)]


def picture(number: int) -> Image.Image:
    """A grey picture of 12 by 10 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def wanted(number: int) -> Tensor:
    """The picture as a teacher of 8x8 grey images sees it."""
    fitted = ImageOps.fit(picture(number), (8, 8), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).float()[None] / 127.5 - 1


def as_folder(root: Path) -> None:
    for i in range(COUNT):
        path = root / f"{LABELS[i]}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(png(i))


def as_parquet(root: Path) -> None:
    for part in (range(10), range(10, COUNT)):
        table = pa.table({"image": [png(i) for i in part], "label": [LABELS[i] for i in part]})
        pq.write_table(table, root / f"part-{part.start:03d}.parquet", row_group_size=4)


def as_hugging_face(root: Path) -> None:
    rows = [{"bytes": png(i), "path": None} for i in range(COUNT)]
    pq.write_table(pa.table({"image": rows, "class": pa.array(LABELS, pa.int16())}), root / "train.parquet")


def as_tar(root: Path) -> None:
    for part in (range(10), range(10, COUNT)):
        with tarfile.open(root / f"part-{part.start:03d}.tar", "w") as tar:
            for i in part:
                contents = {"png": png(i), "cls": str(LABELS[i]).encode(), "json": b"{}"}
                for suffix, content in contents.items():
                    info = tarfile.TarInfo(f"data/{i:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def as_safetensors(root: Path) -> None:
    for part in (range(10), range(10, COUNT)):
        samples = {
            "latents": torch.stack([wanted(i) for i in part]),
            "class_labels": torch.tensor([LABELS[i] for i in part]),
        }
        save_file(samples, root / f"part-{part.start:03d}.safetensors")


MAKERS = {f.__name__: f for f in (as_folder, as_parquet, as_hugging_face, as_tar, as_safetensors)}


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    """Of grey 8x8 images in ten classes."""
    return load_teacher(tiny_teacher)


def opened(root: Path, teacher: Teacher, shared: FileStorage | None = None) -> RealImages:
    return open_real_images(Location(uri=root.as_uri()), teacher, root.parent / "scratch", shared)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_index_is_the_same_image_whatever_the_source(
    make: Callable[[Path], None], tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    images = opened(root, teacher)
    assert len(images) == COUNT
    indices = torch.tensor([23, 0, 9, 10, 10, 5])
    samples, condition = images.at(indices)
    assert torch.equal(samples, torch.stack([wanted(int(i)) for i in indices]))
    assert condition["class_labels"].tolist() == [LABELS[int(i)] for i in indices]
    # In a batch of its own an image is the same: ranks may share a batch as they like.
    assert torch.equal(torch.cat([images.at(i[None])[0] for i in indices]), samples)
    images.check()


def test_latent_teachers_get_latents(tmp_path: Path) -> None:
    teacher = load_teacher(make_sd(tmp_path / "sd"))
    assert teacher.image_shape == (3, 16, 16)
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(i))
    images = opened(root, teacher)
    samples, condition = images.at(torch.tensor([2, 1]))
    assert condition == {}
    assert samples.shape == (2, *teacher.sample_shape)
    fitted = ImageOps.fit(picture(2).convert("RGB"), (16, 16), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(samples[:1], teacher.autoencoder.encode(pixels))
    # Latents that were made before are taken as they are, images in files of tensors are encoded.
    save_file({"latents": samples}, tmp_path / "latents.safetensors")
    assert torch.equal(opened(tmp_path / "latents.safetensors", teacher).at(torch.tensor([0, 1]))[0], samples)
    save_file({"images": pixels.contiguous()}, tmp_path / "pixels.safetensors")
    assert torch.equal(opened(tmp_path / "pixels.safetensors", teacher).at(torch.tensor([0]))[0], samples[:1])


def captioned_folder(root: Path) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}) for i in (1, 0)]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(i))


def captioned_parquet(root: Path) -> None:
    captions = ["picture 0", "picture 1", None]
    pq.write_table(pa.table({"image": [png(i) for i in range(3)], "caption": captions}), root / "a.parquet")


def captioned_tar(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, content in [("0.png", png(0)), ("1.png", png(1)), ("2.png", png(2)), ("1.txt", b"picture 1\n")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("0.txt")
        info.size = len(b"picture 0")
        tar.addfile(info, io.BytesIO(b"picture 0"))


def captioned_latents(root: Path) -> None:
    captions = json.dumps(["picture 0", "picture 1", ""])
    save_file({"latents": torch.zeros(3, 4, 8, 8)}, root / "a.safetensors", {"captions": captions})


@pytest.mark.parametrize("make", [captioned_folder, captioned_parquet, captioned_tar, captioned_latents])
def test_a_picture_comes_with_its_own_caption(make: Callable[[Path], None], tmp_path: Path) -> None:
    teacher = load_teacher(make_sd(tmp_path / "sd"))
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    encoder = TextEncoder(teacher.directory, torch.device("cpu"), torch.float32)

    def embed(captions: list[str]) -> PromptConditions:
        assert captions == ["picture 0", "picture 1", ""]
        shared = FileStorage(tmp_path / "shared")
        return PromptConditions(embeddings=PromptEmbeddings(captions, "digest", shared, tmp_path, lambda: encoder))

    location = Location(uri=root.as_uri())
    images = open_real_images(location, teacher, tmp_path / "scratch", None, embed)
    _, condition = images.at(torch.tensor([1, 2, 0, 1]))
    expected = encoder.encode(["picture 1", "", "picture 0", "picture 1"])
    assert condition.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(condition[key].float(), value.float(), rtol=2e-3, atol=2e-3)
    assert open_real_images(location, teacher, tmp_path / "scratch").at(torch.tensor([1]))[1] == {}


def test_captions_for_other_samples_are_refused(tmp_path: Path) -> None:
    teacher = load_teacher(make_sd(tmp_path / "sd"))
    path = tmp_path / "a.safetensors"
    save_file({"latents": torch.zeros(3, 4, 8, 8)}, path, {"captions": json.dumps(["one"])})
    with pytest.raises(BadInputError, match=r"a\.safetensors cannot be read \(it has 1 captions for 3 samples\)"):
        open_real_images(Location(uri=path.as_uri()), teacher, tmp_path, None, lambda captions: pytest.fail("embedded"))


def test_what_ships_with_the_trainer(tmp_path: Path, teacher: Teacher) -> None:
    digits, labels = load_digits_images()
    indices = torch.tensor([3, 1796])
    images = open_real_images(Location(uri="builtin://digits"), teacher, tmp_path)
    samples, condition = images.at(indices)
    assert torch.equal(samples, digits[indices])
    assert torch.equal(condition["class_labels"], labels[indices])
    coloured = replace(teacher, sample_shape=(3, 32, 32), num_class_embeds=None)
    emoji = open_real_images(Location(uri="builtin://emoji"), coloured, tmp_path)
    assert torch.equal(emoji.at(torch.tensor([7, 0]))[0], load_emoji()[0][[7, 0]])


def test_images_that_do_not_decode_are_named_and_passed_over(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    as_folder(root)
    for number, damage in ((4, b""), (5, b"no picture"), (23, png(23)[:80])):
        (root / f"{LABELS[number]}" / f"{number:03d}.png").write_bytes(damage)
    images = opened(root, teacher)
    samples, condition = images.at(torch.arange(COUNT))
    assert images.bad == ["1/004.png", "1/005.png", "7/023.png"]
    taken = [6 if i in (4, 5) else i for i in range(COUNT - 1)] + [0]
    assert torch.equal(samples, torch.stack([wanted(i) for i in taken]))
    assert condition["class_labels"].tolist() == [LABELS[i] for i in taken]
    # Known ones are not tried again, and counted once.
    assert torch.equal(images.at(torch.tensor([4]))[0], samples[6:7])
    assert len(images.bad) == 3
    monkeypatch.setattr(image_set, "UNDECODABLE_LEAST", 2)
    message = r"24 images at least 3 do not decode, among them 1/004\.png \(it is empty\), 1/005\.png"
    with pytest.raises(BadInputError, match=message):
        opened(root, teacher).at(torch.arange(COUNT))
    with pytest.raises(BadInputError, match=message):
        opened(root, teacher).check()


def test_what_is_fetched_ahead_is_what_is_asked_for(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    as_folder(root)
    images = opened(root, teacher)
    read: list[list[int]] = []
    own = images.images.read

    def counted(indices: list[int], prepare: Callable[[Image.Image], Image.Image]) -> list[image_set.Row]:
        read.append(indices)
        return own(indices, prepare)

    monkeypatch.setattr(images.images, "read", counted)
    images.prefetch(torch.tensor([3, 1]))
    assert torch.equal(images.at(torch.tensor([3, 1]))[0], torch.stack([wanted(3), wanted(1)]))
    assert read == [[3, 1]], "nothing is read twice"
    images.prefetch(torch.tensor([3, 1]))
    assert torch.equal(images.at(torch.tensor([5]))[0][0], wanted(5)), "what was not foreseen is read all the same"
    (root / "0" / "002.png").unlink()
    images.prefetch(torch.tensor([2]))
    with pytest.raises(BadInputError, match=r"002\.png"):
        images.at(torch.tensor([2]))


def test_a_source_without_a_single_good_image_is_refused(tmp_path: Path, teacher: Teacher) -> None:
    root = tmp_path / "images"
    (root / "0").mkdir(parents=True)
    (root / "0" / "a.png").write_bytes(b"nothing")
    with pytest.raises(BadInputError, match=r"a\.png"):
        opened(root, teacher).at(torch.tensor([0]))


def test_rows_without_bytes_count_as_undecodable(tmp_path: Path, teacher: Teacher) -> None:
    root = tmp_path / "images"
    root.mkdir()
    pq.write_table(pa.table({"image": [png(0), None, png(2)], "label": [0, 1, 2]}), root / "a.parquet")
    images = opened(root, teacher)
    assert torch.equal(images.at(torch.tensor([1]))[0][0], wanted(2))
    assert images.bad == ["a.parquet, row 1"]


def _write(path: Path) -> None:
    path.write_bytes(b"not what its name says" * 40)


def no_image_column(root: Path) -> None:
    pq.write_table(pa.table({"picture": [png(0)]}), root / "a.parquet")


def two_kinds(root: Path) -> None:
    as_parquet(root)
    (root / "preview.png").write_bytes(png(0))


def no_labels(root: Path) -> None:
    (root / "a.png").write_bytes(png(0))


def labels_too_large(root: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)], "label": [10]}), root / "a.parquet")


def another_shape(root: Path) -> None:
    save_file({"latents": torch.zeros(2, 4, 8, 8), "class_labels": torch.zeros(2).long()}, root / "a.safetensors")


def labels_as_floats(root: Path) -> None:
    save_file({"latents": torch.zeros(2, 1, 8, 8), "class_labels": torch.zeros(2)}, root / "a.safetensors")


def labels_of_others(root: Path) -> None:
    save_file({"latents": torch.zeros(2, 1, 8, 8), "class_labels": torch.zeros(3).long()}, root / "a.safetensors")


def bytes_as_tensors(root: Path) -> None:
    save_file({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, root / "a.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: _write(root / "a.parquet"), r"a\.parquet cannot be read"),
        (lambda root: _write(root / "a.tar"), r"a\.tar cannot be read"),
        (lambda root: _write(root / "a.safetensors"), r"a\.safetensors cannot be read"),
        (no_image_column, r"no column image, but picture"),
        (two_kinds, r"several kinds, part-000\.parquet and preview\.png"),
        (no_labels, r"have no class labels, and the teacher takes them"),
        (labels_too_large, r"10 is the class of an image; classes are 0 to 9"),
        (another_shape, r"a sample is 4x8x8, but the teacher denoises 1x8x8"),
        (labels_as_floats, r"class_labels is F32 \[2\], not integers \[2\]"),
        (labels_of_others, r"class_labels is I64 \[3\], not integers \[2\]"),
        (bytes_as_tensors, r"images is U8 .*, not floats"),
        (lambda root: None, r"no images there \(looked for \.png"),
    ],
)
def test_what_cannot_be_used_is_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(BadInputError, match=message):
        opened(root, teacher).check()


def test_a_teacher_of_other_classes_is_told(tmp_path: Path, teacher: Teacher) -> None:
    """It has ten: three folders would be others by the order of their names; numbers speak for themselves."""

    def check(names: list[str]) -> str:
        root = write_folder(tmp_path / f"{len(names)}-{names[0]}", {f"{name}/a.png": png(1) for name in names})
        return opened(root, teacher).check()

    assert "10 classes (n0, n1, n2, ...)" in check([f"n{i}" for i in range(10)])
    assert "9 classes" in check([f"n{i}" for i in range(9)])  # the last label may stand for none
    assert "classes 3 to 7" in check(["3", "7"])
    with pytest.raises(BadInputError, match=r"folders of 3 classes \(a, b, c, \.\.\.\), but the teacher has 10"):
        check(["a", "b", "c"])
    with pytest.raises(BadInputError, match=r"no class labels.*\(no labels: the folders test, train are no classes"):
        check(["train", "test"])
    with pytest.raises(BadInputError, match="10 is the class of an image; classes are 0 to 9"):
        check([str(i) for i in range(1, 11)])


def test_labels_are_nothing_to_a_teacher_that_takes_none(tmp_path: Path, teacher: Teacher) -> None:
    unconditional = replace(teacher, num_class_embeds=None)
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": [-1, None]}), tmp_path / "a.parquet")
    images = opened(tmp_path / "a.parquet", unconditional)
    images.check()
    assert images.at(torch.tensor([1]))[1] == {}


def test_numbers_that_are_not_finite_do_not_decode(tmp_path: Path, teacher: Teacher) -> None:
    samples = torch.zeros(3, 1, 8, 8)
    samples[1, 0, 2, 3] = torch.nan
    save_file({"latents": samples, "class_labels": torch.arange(3)}, tmp_path / "a.safetensors")
    images = opened(tmp_path / "a.safetensors", teacher)
    assert images.at(torch.tensor([1]))[1]["class_labels"].tolist() == [2]
    assert "1 do not decode: a.safetensors, sample 1 (its numbers are not finite)" in images.check()


def test_a_missing_source_is_refused(tmp_path: Path, teacher: Teacher) -> None:
    with pytest.raises(BadInputError, match=r"spec\.data\.images: missing"):
        open_real_images(None, teacher, tmp_path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    server = start_s3(tmp_path / "s3", free_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    make_bucket(server.url, "images")
    yield "s3://images"
    server.stop()


def test_shards_in_a_bucket_are_counted_once_and_fetched_when_drawn_from(
    bucket: str, tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    as_tar(root)
    for path in root.iterdir():
        open_storage(bucket).upload(path, f"set/{path.name}")
    location, shared = Location(uri=f"{bucket}/set"), FileStorage(tmp_path / "shared")
    assert len(open_real_images(location, teacher, tmp_path / "preflight", shared)) == COUNT
    (kept,) = shared.list()
    assert json.loads(shared.read(kept)) == [10, 14]
    for damage in (b"[10", b"[10]", b'[10, "14"]', b"[" * 100_000):
        shared.write(kept, damage)
        assert len(open_real_images(location, teacher, tmp_path / "preflight", shared)) == COUNT
        assert json.loads(shared.read(kept)) == [10, 14]

    images = open_real_images(location, teacher, tmp_path / "scratch", shared)

    def fetched() -> list[str]:
        return sorted(path.name for path in (tmp_path / "scratch").rglob("*.tar"))

    images.at(torch.tensor([3]))
    assert fetched() == ["part-000.tar"]
    assert torch.equal(images.at(torch.tensor([20]))[0][0], wanted(20))
    assert fetched() == ["part-000.tar", "part-010.tar"]
    # A single object is a source as well.
    one = open_real_images(Location(uri=f"{bucket}/set/part-010.tar"), teacher, tmp_path / "scratch")
    assert torch.equal(one.at(torch.tensor([0]))[0][0], wanted(10))


def test_counts_beside_the_shards_are_taken_for_true_until_they_are_wrong(tmp_path: Path, teacher: Teacher) -> None:
    root = tmp_path / "images"
    root.mkdir()
    as_tar(root)
    (root / "sizes.json").write_text(json.dumps({"part-000.tar": 10, "part-010.tar": 14}))
    assert torch.equal(opened(root, teacher).at(torch.tensor([23]))[0][0], wanted(23))
    (root / "sizes.json").write_text(json.dumps({"part-000.tar": 10, "part-010.tar": 99}))
    with pytest.raises(BadInputError, match="fewer images than when they were counted"):
        opened(root, teacher).at(torch.tensor([50]))
