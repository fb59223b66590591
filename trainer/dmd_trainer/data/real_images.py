"""Real images as a teacher sees them, with labels or captions, for the GAN term."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.data.image_set import ImageSet, Row
from dmd_trainer.runtime.storage import Storage

if TYPE_CHECKING:
    from dmd_trainer.families.teacher import Teacher

EmbedCaptions = Callable[[list[str]], Conditions]
"""Captions -> the conditions that they are, by number; the embeddings are made when they are first needed."""
CHECKED_AT_ONCE = 64


class RealImages:
    """Real images as a teacher sees them, for DMD2's GAN term (arXiv 2405.14867, section 4.3).

    Args:
        images: the source.
        teacher: whose space the samples are in.
        embed: for a teacher that takes text, embeds captions; used where images have some.

    Raises:
        BadInputError: they have no labels, and the teacher takes some.
    """

    def __init__(self, images: ImageSet, teacher: "Teacher", embed: EmbedCaptions | None = None) -> None:
        self.images, self._teacher = images, teacher
        self._embed = embed if embed is not None and images.captioned else None
        self._captions: dict[str, Conditions] = {}  # of each shard that was drawn from
        self._ahead: tuple[list[int], Future[list[Row]]] | None = None
        self._device = teacher.denoiser.schedule.sigmas.device
        self._classes = teacher.num_class_embeds
        """How many labels the teacher takes; None: none, whatever the images have."""
        if self._classes is not None:
            self._check_classes(self._classes)

    def _check_classes(self, wanted: int) -> None:
        images = self.images
        if not images.labelled:
            raise BadInputError(
                f"{images.field}: {images.uri}: the images have no class labels, and the teacher takes them: give a "
                "folder for each class, EDM's dataset.json, a parquet column label, .cls files in the tars or a tensor "
                "class_labels" + (f" ({images.about_labels})" if images.about_labels else "")
            )
        # As in the manifest's count, the last label may stand for no class.
        if (names := images.class_names) is not None and len(names) not in (wanted, wanted - 1):
            raise BadInputError(
                f"{images.field}: {images.uri}: folders of {len(names)} classes ({', '.join(names[:3])}, ...), "
                f"but the teacher has {wanted}: their order does not say which they are; name folders by the classes' "
                "numbers"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bad(self) -> list[str]:
        """The names of the images that did not decode so far."""
        return self.images.bad

    def at(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples [B, C, H, W], float32, at indices [B], and their conditions.

        An image that does not decode is replaced by the next one that does.

        Args:
            indices: from 0 to the number of images.

        Returns:
            Samples in the teacher's space, latents on its device; {"class_labels": [B]} where the teacher takes some,
            and a text-to-image teacher's condition for their captions where they have some.

        Raises:
            BadInputError: too many images do not decode, a file cannot be read, or a sample does not fit the teacher.
        """
        wanted = indices.tolist()
        found: list[int] = []
        rows: list[tuple[Tensor, int | None]] = []
        for index, row in zip(wanted, self._read(wanted), strict=True):
            while row is None:
                index = (index + 1) % len(self)
                (row,) = self.images.read([index], self._prepare)
            found.append(index)
            rows.append(row)
        samples = torch.stack([self._sample(sample) for sample, _ in rows])
        conditions: dict[str, Tensor] = {}
        if self._classes is not None:
            conditions["class_labels"] = torch.tensor([self._label(label) for _, label in rows])
        if self._embed is not None:
            captions = [self._caption(self._embed, index) for index in found]
            conditions |= {key: torch.cat([caption[key] for caption in captions]) for key in captions[0]}
        return samples, conditions

    def _caption(self, embed: EmbedCaptions, index: int) -> dict[str, Tensor]:
        """The condition for an image's caption, each [1, ...]."""
        shard, row = self.images.place(index)
        if shard.key not in self._captions:
            # Of a shard without captions in a source that has some, all are unknown.
            self._captions[shard.key] = embed(shard.captions or [""] * shard.count())
        return self._captions[shard.key].embed({"prompt": torch.tensor([row])}, self._device)

    def prefetch(self, indices: Tensor) -> None:
        """Begins to fetch and decode the images for the next `at`, while the device computes."""
        wanted = indices.tolist()
        self._ahead = (wanted, _background().submit(self.images.read, wanted, self._prepare))

    def _read(self, wanted: list[int]) -> list[Row]:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self.images.read(wanted, self._prepare)
        found = ahead[1].result()  # waited for even if it is of no use: two readers would count what is bad at once
        return found if ahead[0] == wanted else self.images.read(wanted, self._prepare)

    def check(self) -> str:
        """Reads images from all over the source, before anything is trained on them.

        Returns:
            What was found, in a line for people.

        Raises:
            BadInputError: as `at`.
        """
        labels = [] if self._classes is None else [self._label(label) for label in self.images.labels_looked_at()]
        indices = torch.tensor(self.images.spread())
        for chunk in indices.split(CHECKED_AT_ONCE):
            for row in self.images.read(chunk.tolist(), self._prepare):
                if row is not None:
                    self._check_shape(row[0])
        return self.images.summary(labels, captions=self._teacher.takes_text)

    def _prepare(self, picture: Image.Image) -> Image.Image:
        """The largest centred part of the image's proportions, resized: bicubic, antialiased."""
        channels, height, width = self._teacher.image_shape
        mode = "L" if channels == 1 else "RGB"
        return ImageOps.fit(picture.convert(mode), (width, height), Image.Resampling.BICUBIC)

    def _sample(self, sample: Tensor) -> Tensor:
        """A picture or tensor [C, H, W] in the teacher's space; each alone, so that batches do not change it."""
        self._check_shape(sample)
        if tuple(sample.shape) == self._teacher.sample_shape:
            return sample.to(self._device)
        return self._teacher.autoencoder.encode(sample[None].to(self._device))[0].float()

    def _check_shape(self, sample: Tensor) -> None:
        teacher = self._teacher
        if tuple(sample.shape) in (teacher.sample_shape, teacher.image_shape):
            return
        found, wanted = ("x".join(map(str, shape)) for shape in (sample.shape, teacher.sample_shape))
        raise BadInputError(
            f"{self.images.field}: {self.images.uri}: a sample is {found}, but the teacher denoises {wanted}; "
            "give image files, or tensors of that shape"
        )

    def _label(self, label: int | None) -> int:
        assert self._classes is not None, "only a teacher with classes asks"
        if label is None or not 0 <= label < self._classes:
            raise BadInputError(
                f"{self.images.field}: {self.images.uri}: {label} is the class of an image; classes are 0 to "
                f"{self._classes - 1}, as the teacher has them"
            )
        return label


def open_real_images(
    location: Location | None,
    teacher: "Teacher",
    scratch: Path,
    shared: Storage | None = None,
    embed: EmbedCaptions | None = None,
) -> RealImages:
    """The images of `spec.data.images`, for a teacher.

    Args:
        location: where they are.
        teacher: whose space they are brought to.
        scratch: where remote files are copied to: the node needs room for all of them.
        shared: storage that all runs share; keeps the number of images of each shard.
        embed: for a teacher that takes text, embeds captions.

    Raises:
        BadInputError: there are none, of no known format, or they do not fit the teacher.
    """
    return RealImages(ImageSet(location, "spec.data.images", scratch, shared), teacher, embed)


@cache
def _background() -> ThreadPoolExecutor:
    """One thread for what is read ahead; decoding itself is spread over `decoding`'s pool."""
    return ThreadPoolExecutor(1)
