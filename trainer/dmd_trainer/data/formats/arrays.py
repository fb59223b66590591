"""Safetensors: images or latents as arrays."""

import json
from functools import cached_property

from safetensors import SafetensorError, safe_open

from dmd_trainer.data.shard import Entry, Shard


class Arrays(Shard):
    """A safetensors file: `latents` or `images` [N, C, H, W], maybe `class_labels` [N], and captions in its metadata.

    The metadata's `captions` is a JSON list of N texts.
    """

    suffixes = (".safetensors",)

    @cached_property
    def _layout(self) -> tuple[str, int, bool]:
        """The key of its samples, how many there are, and whether it has labels."""
        try:
            with safe_open(self.files.fetch(self.key), framework="pt") as file:
                keys = set(file.keys())
                found = [key for key in ("latents", "images") if key in keys]
                if not found:
                    raise self.unreadable(f"it has neither latents nor images, but {', '.join(sorted(keys))}")
                samples = file.get_slice(found[0])
                shape, kind = samples.get_shape(), samples.get_dtype()
        except (OSError, SafetensorError) as error:
            raise self.unreadable(error) from error
        if len(shape) != 4 or not kind.startswith(("F", "BF")):
            raise self.unreadable(f"{found[0]} is {kind} {shape}, not floats [N, C, H, W]")
        return found[0], int(shape[0]), "class_labels" in keys

    def count(self) -> int:
        return self._layout[1]

    @property
    def labelled(self) -> bool:
        return self._layout[2]

    @cached_property
    def captions(self) -> list[str] | None:
        try:
            with safe_open(self.files.fetch(self.key), framework="pt") as file:
                content = (file.metadata() or {}).get("captions")
            if content is None:
                return None
            captions = [str(caption) for caption in json.loads(content)]
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise self.unreadable(error) from error
        if len(captions) != self.count():
            raise self.unreadable(f"it has {len(captions)} captions for {self.count()} samples")
        return captions

    def entry(self, index: int) -> Entry:
        key, _, labelled = self._layout
        with safe_open(self.files.fetch(self.key), framework="pt") as file:
            sample = file.get_slice(key)[index : index + 1][0].float()
            label = int(file.get_slice("class_labels")[index : index + 1][0]) if labelled else None
        return Entry(f"{self.key}, sample {index}", sample, label)
