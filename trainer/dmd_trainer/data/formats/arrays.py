"""Safetensors: images or latents as arrays."""

import json
from dataclasses import dataclass
from functools import cached_property

from safetensors import safe_open

from dmd_trainer.conditions.texts import texts_in
from dmd_trainer.data.shard import Entry, Shard, one_caption


@dataclass(frozen=True)
class _Layout:
    """The key of its samples, how many there are, and whether it has labels."""

    key: str
    count: int
    labelled: bool


class Arrays(Shard):
    """A safetensors file: `latents` or `images` [N, C, H, W], maybe `class_labels` [N], and captions in its metadata.

    The metadata's `captions` is a JSON list of N texts, or of N lists of texts.
    """

    suffixes = (".safetensors",)

    @cached_property
    def _layout(self) -> _Layout:
        with self.reading(), safe_open(self.files.fetch(self.key), framework="pt") as file:
            keys = set(file.keys())
            found = [key for key in ("latents", "images") if key in keys]
            if not found:
                raise ValueError(f"it has neither latents nor images, but {', '.join(sorted(keys))}")
            samples = file.get_slice(found[0])
            shape, kind = samples.get_shape(), samples.get_dtype()
            if len(shape) != 4 or not kind.startswith(("F", "BF")):
                raise ValueError(f"{found[0]} is {kind} {shape}, not floats [N, C, H, W]")
            labelled = "class_labels" in keys
            if labelled:
                labels = file.get_slice("class_labels")
                if labels.get_shape() != shape[:1] or not labels.get_dtype().startswith(("I", "U")):
                    raise ValueError(
                        f"class_labels is {labels.get_dtype()} {labels.get_shape()}, not integers [{shape[0]}]"
                    )
            return _Layout(found[0], int(shape[0]), labelled)

    def count(self) -> int:
        return self._layout.count

    @cached_property
    def labels(self) -> list[int] | None:
        if not self._layout.labelled:
            return None
        with self.reading(), safe_open(self.files.fetch(self.key), framework="pt") as file:
            return file.get_tensor("class_labels").tolist()

    @cached_property
    def captions(self) -> list[str] | None:
        with self.reading(), safe_open(self.files.fetch(self.key), framework="pt") as file:
            content = (file.metadata() or {}).get("captions")
            if content is None:
                return None
            captions = json.loads(content)
            if not isinstance(captions, list):
                raise ValueError("its captions are no list")
            if len(captions) != self.count():
                raise ValueError(f"it has {len(captions)} captions for {self.count()} samples")
            return [one_caption(texts_in(value), f"{self.key}, {row}") for row, value in enumerate(captions)]

    def entry(self, index: int) -> Entry:
        layout = self._layout
        if index >= layout.count:
            raise IndexError(index)
        with self.reading(), safe_open(self.files.fetch(self.key), framework="pt") as file:
            sample = file.get_slice(layout.key)[index : index + 1][0].float()
        return Entry(f"{self.key}, sample {index}", sample)
