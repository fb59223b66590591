"""WebDataset's tars: files that share a name make a sample."""

import tarfile
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from dmd_trainer.data.formats.folder import PICTURES
from dmd_trainer.data.shard import Entry, Shard


class _TarIndex(NamedTuple):
    """Where a tar's pictures begin, how long they are, and what goes with them; sorted as the tar is."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int] | None
    captions: list[str] | None


class Tar(Shard):
    """A webdataset tar: files of one name without suffixes are a sample: its picture, and maybe `.cls` and `.txt`."""

    suffixes = (".tar",)

    @cached_property
    def _index(self) -> _TarIndex:
        places: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        captions: dict[str, str] = {}
        try:
            with tarfile.open(self.files.fetch(self.key)) as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    stem, suffix = str(path.parent / path.name.split(".", 1)[0]), path.suffix.lower()
                    if not member.isfile():
                        continue
                    if suffix in PICTURES:
                        places.setdefault(stem, (member.offset_data, member.size))
                    elif suffix == ".cls":
                        content = tar.extractfile(member)
                        labels[stem] = int(content.read()) if content else -1
                    elif suffix == ".txt":
                        content = tar.extractfile(member)
                        captions[stem] = content.read().decode(errors="replace").strip() if content else ""
        except (OSError, ValueError, tarfile.TarError) as error:
            raise self.unreadable(error) from error
        if not places:
            raise self.unreadable(f"there are no {', '.join(PICTURES)} in it")
        offsets, sizes = np.array(list(places.values()), dtype=np.int64).T
        if labels and not places.keys() <= labels.keys():
            raise self.unreadable(f"{next(iter(places.keys() - labels.keys()))} has no .cls, others have")
        return _TarIndex(
            offsets,
            sizes,
            [labels[stem] for stem in places] if labels else None,
            [captions.get(stem, "") for stem in places] if captions else None,
        )

    def count(self) -> int:
        return len(self._index.offsets)

    @property
    def labelled(self) -> bool:
        return self._index.labels is not None

    @cached_property
    def captions(self) -> list[str] | None:
        return self._index.captions

    def entry(self, index: int) -> Entry:
        offsets, sizes, labels, _ = self._index
        with self.files.fetch(self.key).open("rb") as file:
            file.seek(int(offsets[index]))
            content = file.read(int(sizes[index]))
        return Entry(f"{self.key}, image {index}", content, None if labels is None else labels[index])
