"""Real images, and their features."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.manifest import Location
from dmd_trainer.digits import load_digits_images
from dmd_trainer.evaluation.features import FeatureExtractor
from dmd_trainer.fetch import ASSETS, local_path
from dmd_trainer.storage import Storage

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH = 250


def reference_features(
    location: Location | None,
    extractor: FeatureExtractor,
    resolution: tuple[int, int],
    cache: Storage,
    scratch: Path,
    device: torch.device,
) -> Tensor:
    """The features of the real images that the manifest names: [N, D], float32, on the CPU; cached by hash.

    Args:
        location: `spec.evaluation.reference`.
        extractor: the feature network.
        resolution: (H, W) of the generated images; the real ones must have it.
        cache: what runs share.
        scratch: where remote images are copied to.
        device: where the network runs.

    Raises:
        BadInputError: there are no images, or they have another size.
    """
    if location is None:
        raise BadInputError("spec.evaluation.reference: missing; FID compares with real images: give their URI")
    digest, batches = _images(location.uri, scratch)
    identity = json.dumps({"images": digest, "extractor": extractor.digest, "resolution": resolution})
    key = f"cache/reference-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    if cache.exists(key):
        return load(cache.read(key))["features"]
    features = []
    for images in batches:
        if tuple(images.shape[-2:]) != tuple(resolution):
            found, wanted = ("x".join(map(str, size)) for size in (images.shape[-2:], resolution))
            raise BadInputError(f"spec.evaluation.reference.uri: {location.uri}: images are {found}, not {wanted}")
        features.append(extractor.extract(images.to(device))[0].cpu())
    result = torch.cat(features).contiguous()
    cache.write(key, save({"features": result}))
    return result


def _images(uri: str, scratch: Path) -> tuple[str, Iterator[Tensor]]:
    """A digest of the images, and the images in batches [B, C, H, W] in [-1, 1]."""
    if uri == "builtin://digits":
        images, _ = load_digits_images()
        return hashlib.sha256(images.numpy().tobytes()).hexdigest(), iter(images.split(BATCH))
    if uri.startswith("builtin://"):
        raise BadInputError(
            f"spec.evaluation.reference.uri: {uri}: only builtin://digits ships with {ASSETS.parent.name}"
        )
    folder = local_path(uri, scratch)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        kinds = ", ".join(sorted(SUFFIXES))
        raise BadInputError(f"spec.evaluation.reference.uri: {uri}: no images there (looked for {kinds})")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}:{file.stat().st_size};".encode())
    return digest.hexdigest(), (
        torch.stack([_read(file) for file in files[start : start + BATCH]]) for start in range(0, len(files), BATCH)
    )


def _read(path: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise BadInputError(f"spec.evaluation.reference.uri: {path} cannot be read as an image; remove it") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
