"""Measuring: the same images for any number of ranks, features that are the real networks' own, caches by hash."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.data.digits import load_digits_images
from dmd_trainer.evaluation.features import InceptionFeatures, load_features
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.runtime.storage import FileStorage

CPU = torch.device("cpu")
DIGITS = Location(uri="builtin://digits-classifier")

MEASURE = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from dmd_api.spec import Location
from dmd_trainer.conditions.labels import ClassLabels
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.measure import Samples, measure
torch.set_num_threads(1)
dist.init_process_group("gloo")
cpu = torch.device("cpu")
extractor = load_features(Location(uri="builtin://digits-classifier"), Path("."), cpu)
found = measure(lambda noise, condition: noise + condition["class_labels"][:, None, None, None] / 10, extractor,
                Samples(70, 3, 16, (1, 8, 8), ClassLabels(10), cpu))
if dist.get_rank() == 0:
    torch.save((found.features, found.correct), sys.argv[1])
dist.destroy_process_group()
"""


def test_any_number_of_ranks_measures_the_same_images(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(MEASURE))
    found = []
    for processes in (1, 3):
        out = tmp_path / f"{processes}.pt"
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            str(script),
            str(out),
        ]
        subprocess.run([sys.executable, *command], check=True, timeout=200)
        found.append(torch.load(out))
    assert found[0][0].shape == (70, 64)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_digits_classifier_knows_the_digits(tmp_path: Path) -> None:
    extractor = load_features(DIGITS, tmp_path, CPU)
    images, labels = load_digits_images()
    features, predicted = extractor.extract(images)
    assert features.shape == (1797, 64)
    assert predicted is not None
    assert (predicted == labels).float().mean() > 0.99


def test_inception_is_torch_fidelitys_with_the_weights_given(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = tmp_path / "inception.pth"
    torch.manual_seed(0)
    empty = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    loaded: dict[str, torch.Tensor] = {}
    original = torch.nn.Module.load_state_dict
    try:
        # The constructor reads the file into the network: a first call with this hook writes an untrained one there.
        def keep(module: torch.nn.Module, state: object, *args: object, **kwargs: object) -> None:
            loaded.update(module.state_dict())

        torch.nn.Module.load_state_dict = keep  # type: ignore[assignment,method-assign]
        torch.save({}, weights)
        FeatureExtractorInceptionV3.__init__(empty, "x", ["2048"], feature_extractor_weights_path=str(weights))
    finally:
        torch.nn.Module.load_state_dict = original  # type: ignore[method-assign]
    torch.save(loaded, weights)
    reference = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    extractor = load_features(Location(uri=weights.as_uri()), tmp_path, CPU)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    features, labels = extractor.extract(images)
    assert labels is None
    torch.testing.assert_close(features, reference(pixels)[0])
    _check_clean_resizing(InceptionFeatures(weights, "x", clean=True), images)


def _check_clean_resizing(extractor: InceptionFeatures, images: torch.Tensor) -> None:
    """As clean-fid does it: each channel by PIL's bicubic filter, in floats, which the network then sees."""
    seen: list[torch.Tensor] = []
    extractor.network.Conv2d_1a_3x3.conv.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    features, _ = extractor.extract(images)
    assert features.shape == (2, 2048)
    for image, found in zip(((images + 1) * 127.5).round(), seen[0], strict=True):
        for channel, resized in zip(image, found, strict=True):
            wanted = Image.fromarray(channel.numpy()).resize((299, 299), Image.Resampling.BICUBIC)
            torch.testing.assert_close(
                resized * 128 + 128, torch.from_numpy(np.array(wanted)).clamp(0, 255), rtol=0, atol=2e-2
            )


def test_files_that_are_no_inception_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"nonsense")
    with pytest.raises(BadInputError, match="not torch-fidelity's InceptionV3"):
        load_features(Location(uri=(tmp_path / "weights.pth").as_uri()), tmp_path, CPU)
    with pytest.raises(BadInputError, match="folder"):
        load_features(Location(uri=tmp_path.as_uri()), tmp_path, CPU)
    with pytest.raises(BadInputError, match="missing"):
        load_features(None, tmp_path, CPU)


def test_reference_features_are_cached_by_what_they_are_of(tmp_path: Path) -> None:
    cache = FileStorage(tmp_path / "cache")
    extractor = load_features(DIGITS, tmp_path, CPU)
    digits = Location(uri="builtin://digits")
    first = reference_features(digits, extractor, (8, 8), cache, tmp_path, CPU)
    assert len(cache.list()) == 1
    torch.testing.assert_close(first, extractor.extract(load_digits_images()[0])[0], rtol=1e-4, atol=1e-4)
    extractor.extract = None  # type: ignore[method-assign,assignment] # it must not be asked again
    assert torch.equal(reference_features(digits, extractor, (8, 8), cache, tmp_path, CPU), first)


def test_a_reference_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    extractor = load_features(DIGITS, tmp_path, CPU)
    cache = FileStorage(tmp_path / "cache")
    folder = tmp_path / "images"
    folder.mkdir()
    location = Location(uri=folder.as_uri())
    with pytest.raises(BadInputError, match="no images there"):
        reference_features(location, extractor, (8, 8), cache, tmp_path, CPU)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(BadInputError, match="images are 16x16, not 8x8"):
        reference_features(location, extractor, (8, 8), cache, tmp_path, CPU)
    (folder / "a.png").write_bytes(b"not an image")
    with pytest.raises(BadInputError, match=r"do not decode, among them a\.png"):
        reference_features(location, extractor, (8, 8), cache, tmp_path, CPU)
    with pytest.raises(BadInputError, match="missing"):
        reference_features(None, extractor, (8, 8), cache, tmp_path, CPU)
