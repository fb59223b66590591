"""Real images to measure against: every source, resized as the published protocol does, damaged ones passed over."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.conditions.labels import Unconditional
from dmd_trainer.data import image_set
from dmd_trainer.data.emoji import load_emoji
from dmd_trainer.evaluation.features import FeatureExtractor
from dmd_trainer.evaluation.measure import Samples, measure
from dmd_trainer.evaluation.reference import check_reference, reference_features, square_images
from dmd_trainer.runtime.storage import FileStorage

CPU = torch.device("cpu")
SIZES = [(40, 30), (24, 24), (31, 64)]


class Flat(FeatureExtractor):
    """The images themselves."""

    def __init__(self) -> None:
        super().__init__("flat", "digest", channels=None)

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        return images.flatten(1), None


def picture(number: int) -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_the_protocol(image: Image.Image, resolution: int) -> Tensor:
    """The longer edge cropped, then PIL's Lanczos: DMD's and GigaGAN's."""
    resized = center_crop(image, min(image.size)).resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(6):
        picture(i).save(root / f"{i}.png")
    return root


def features(root: Path, resolution: int | None, tmp_path: Path, size: tuple[int, int] = (8, 8)) -> Tensor:
    return reference_features(
        Location(uri=root.as_uri()),
        Flat(),
        size,
        FileStorage(tmp_path / "cache"),
        tmp_path / "scratch",
        CPU,
        resolution,
    )


def test_images_of_all_sizes_are_resized_as_published(folder: Path, tmp_path: Path) -> None:
    expected = torch.stack([by_the_protocol(picture(i), 16) for i in range(6)]).flatten(1)
    torch.testing.assert_close(features(folder, 16, tmp_path), expected)
    # The cache tells resolutions apart.
    assert features(folder, 8, tmp_path).shape == (6, 3 * 8 * 8)
    assert len([key for key in FileStorage(tmp_path / "cache").list() if "reference" in key]) == 2


def test_parquet_gives_what_the_folder_does(folder: Path, tmp_path: Path) -> None:
    def content(number: int) -> bytes:
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        return buffer.getvalue()

    pq.write_table(pa.table({"image": [content(i) for i in range(6)]}), tmp_path / "a.parquet")
    assert torch.equal(features(tmp_path / "a.parquet", 16, tmp_path), features(folder, 16, tmp_path))


def test_emoji_ship_with_the_trainer(tmp_path: Path) -> None:
    found = reference_features(
        Location(uri="builtin://emoji"), Flat(), (32, 32), FileStorage(tmp_path / "cache"), tmp_path, CPU
    )
    torch.testing.assert_close(found, load_emoji()[0].flatten(1))


def test_generated_images_are_resized_as_real_ones_are(tmp_path: Path) -> None:
    image = picture(1)
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(square_images(given, 16)[0], by_the_protocol(image, 16))
    assert square_images(given, 24) is given
    assert square_images(given[:, :1], 16).shape == (1, 1, 16, 16)
    samples = Samples(3, 0, 2, (3, 24, 24), Unconditional(), CPU, resolution=16)
    measured = measure(lambda noise, condition: given.expand(len(noise), -1, -1, -1), Flat(), samples)
    torch.testing.assert_close(measured.features, by_the_protocol(image, 16).flatten().expand(3, -1))


def test_images_of_another_size_are_refused_without_a_resolution(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"images are 40x30, not 8x8; .* evaluation\.resolution"):
        features(folder, None, tmp_path)
    with pytest.raises(BadInputError, match="images are 40x30, not 8x8"):
        check_reference(
            Location(uri=folder.as_uri()), Flat(), (8, 8), tmp_path / "scratch", FileStorage(tmp_path / "cache")
        )


def test_images_that_do_not_decode_are_left_out_up_to_a_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "2.png").write_bytes(b"no picture")
    expected = torch.stack([by_the_protocol(picture(i), 16) for i in (0, 1, 3, 4, 5)]).flatten(1)
    torch.testing.assert_close(features(folder, 16, tmp_path), expected)
    monkeypatch.setattr(image_set, "UNDECODABLE_LEAST", 0)
    with pytest.raises(BadInputError, match=r"spec\.evaluation\.reference: .* among them 2\.png"):
        features(folder, 12, tmp_path)
