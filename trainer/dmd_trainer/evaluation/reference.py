"""Real images to measure against, and their features."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor
from torchvision.transforms.functional import center_crop

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.data.decoding import in_threads, to_tensor
from dmd_trainer.data.image_set import ImageSet
from dmd_trainer.evaluation.features import FeatureExtractor
from dmd_trainer.runtime.storage import Storage

FIELD = "spec.evaluation.reference"
BATCH = 250


def reference_features(
    location: Location | None,
    extractor: FeatureExtractor,
    size: tuple[int, int],
    cache: Storage,
    scratch: Path,
    device: torch.device,
    resolution: int | None = None,
) -> Tensor:
    """The features of the real images that the manifest names: [N, D], float32, on the CPU; cached by hash.

    Args:
        location: `spec.evaluation.reference`.
        extractor: the feature network.
        size: (H, W) of the generated images; without a resolution the real ones must have it.
        cache: what runs share.
        scratch: where remote images are copied to; they are not where the features are known.
        device: where the network runs.
        resolution: `spec.evaluation.resolution`: what the images are brought to.

    Raises:
        BadInputError: there are no images, they have another size, or too many do not decode.
    """
    images = ImageSet(location, FIELD, scratch, cache)
    wanted = size if resolution is None else (resolution, resolution)
    identity = json.dumps(
        {"images": images.identity, "extractor": extractor.digest, "size": wanted, "resized": resolution is not None}
    )
    key = f"cache/reference-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    if cache.exists(key):
        return load(cache.read(key))["features"]
    batches = _batches(images, range(len(images)), extractor, size, resolution)
    with torch.inference_mode():
        result = torch.cat([extractor.extract(batch.to(device))[0].float().cpu() for batch in batches]).contiguous()
    cache.write(key, save({"features": result}))
    return result


def check_reference(
    location: Location | None,
    extractor: FeatureExtractor,
    size: tuple[int, int],
    scratch: Path,
    cache: Storage,
    resolution: int | None = None,
) -> str:
    """Reads real images from all over the source, and extracts a few: what can be wrong with them is found early.

    Args:
        location: `spec.evaluation.reference`.
        extractor: the feature network.
        size: (H, W) of the generated images.
        scratch: where remote images are copied to.
        cache: what runs share.
        resolution: `spec.evaluation.resolution`.

    Returns:
        What was found, in a line for people.

    Raises:
        BadInputError: as `reference_features`.
    """
    images = ImageSet(location, FIELD, scratch, cache)
    batches = list(_batches(images, images.spread(), extractor, size, resolution))
    with torch.inference_mode():
        extractor.extract(batches[0][:2])
    return images.summary()


def _batches(
    images: ImageSet,
    indices: Sequence[int],
    extractor: FeatureExtractor,
    size: tuple[int, int],
    resolution: int | None,
) -> Iterator[Tensor]:
    """The images at `indices` that decode, [B, C, H, W] in [-1, 1]."""
    mode = "L" if extractor.channels == 1 else "RGB"

    def prepare(picture: Image.Image) -> Image.Image:
        picture = picture.convert(mode)
        return picture if resolution is None else square(picture, resolution)

    read = 0
    for start in range(0, len(indices), BATCH):
        chunk = indices[start : start + BATCH]
        found = [row[0] for row in images.read(chunk, prepare) if row is not None]
        # Tensors come as they are, without passing through `prepare`.
        if resolution is not None:
            found = [square_images(image[None], resolution)[0] for image in found]
        for image in found:
            _check_size(images, tuple(image.shape[-2:]), size if resolution is None else (resolution, resolution))
        read += len(found)
        if found:
            yield torch.stack(found)
    if not read:
        raise BadInputError(f"{FIELD}: {images.uri}: none of the images decodes ({images.bad[0]}, ...); replace them")


def _check_size(images: ImageSet, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if found != tuple(wanted):
        has, needs = ("x".join(map(str, size)) for size in (found, wanted))
        raise BadInputError(
            f"{FIELD}.uri: {images.uri}: images are {has}, not {needs}; give images of that size, or an "
            "evaluation.resolution that both are brought to"
        )


def square(picture: Image.Image, resolution: int) -> Image.Image:
    """The centred square of a picture, resized by PIL's Lanczos filter (arXiv 2311.18828, appendix D: to 256)."""
    cropped: Image.Image = center_crop(picture, min(picture.size))
    return cropped.resize((resolution, resolution), Image.Resampling.LANCZOS)


def square_images(images: Tensor, resolution: int) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] through 8 bits and `square`: as if they had been files; on their device."""
    if tuple(images.shape[-2:]) == (resolution, resolution):
        return images
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def resized(array: np.ndarray) -> Tensor:
        return to_tensor(square(Image.fromarray(array), resolution))

    return torch.stack(in_threads(resized, [p[..., 0] if p.shape[-1] == 1 else p for p in pixels])).to(images)
