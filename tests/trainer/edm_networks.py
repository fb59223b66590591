"""The networks of EDM's published checkpoints, written from their description, and pickles in the published layout.

ADM: arXiv 2105.05233; DDPM++ and NCSN++: arXiv 2011.13456; the preconditioning and the widths: arXiv 2206.00364. They
are written as plain formulas, with nothing of diffusers in them, because they are what conversion is held against.
"""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("no test unpickles with this")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class EasyDict(dict[str, Any]):
    """Stands for the published `dnnlib.util.EasyDict`."""


EasyDict.__module__ = "dnnlib.util"


class Published(nn.Module):
    """Pickles as EDM's classes do: a description of itself, with its attributes, for a function that executes it."""

    def __reduce__(self) -> Any:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('the code in the pickle was executed')",
            "class_name": type(self).__name__,
            "state": self.__dict__,
        }
        return _reconstruct_persistent_obj, (meta,), None, None, None


class Linear(Published):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(Published):
    """A filter that halves or doubles the resolution, a convolution, or the first and then the second."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, change: str = "", taps: tuple[int, ...] = (1, 1)
    ) -> None:
        super().__init__()
        self.change = change
        scale = (inputs * max(kernel, 1) ** 2) ** -0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * scale) if kernel else None
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1) if kernel else None
        row = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2 if change else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.change:
            channels, padding = x.shape[1], (self.resample_filter.shape[-1] - 1) // 2
            each = self.resample_filter.repeat(channels, 1, 1, 1)
            if self.change == "up":
                x = F.conv_transpose2d(x, 4 * each, stride=2, padding=padding, groups=channels)
            else:
                x = F.conv2d(x, each, stride=2, padding=padding, groups=channels)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class FusedDown(Conv2d):
    """The input pyramid's: convolution and filter with padding once, before both, and the bias after both."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1 + (self.resample_filter.shape[-1] - 1) // 2)
        each = self.resample_filter.repeat(len(self.weight), 1, 1, 1)
        return F.conv2d(x, each, stride=2, groups=len(self.weight)) + self.bias[:, None, None]


FusedDown.__name__ = "Conv2d"


class GroupNorm(Published):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(channels))
        self.bias = nn.Parameter(0.2 * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, min(32, x.shape[1] // 4), self.weight, self.bias, self.eps)


class UNetBlock(Published):
    def __init__(
        self, inputs: int, outputs: int, emb: int, song: bool, taps: Any, change: str = "", attention: bool = False
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.song = inputs, outputs, song
        self.skip_scale = np.sqrt(0.5) if song else 1
        self.heads = 1 if song else outputs // 64
        eps = 1e-6 if song else 1e-5
        self.norm0, self.norm1 = GroupNorm(inputs, eps), GroupNorm(outputs, eps)
        self.conv0, self.conv1 = Conv2d(inputs, outputs, 3, change, taps), Conv2d(outputs, outputs, 3)
        self.affine = Linear(emb, outputs * (1 if song else 2))
        projects = inputs != outputs or (song and change)
        self.skip = Conv2d(inputs, outputs, 1 if projects else 0, change, taps) if projects or change else None
        self.attends = attention
        if attention:
            self.norm2 = GroupNorm(outputs, eps)
            self.qkv, self.proj = Conv2d(outputs, 3 * outputs, 1), Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        told = self.affine(emb)[:, :, None, None]
        h = self.conv0(F.silu(self.norm0(x)))
        if self.song:
            h = F.silu(self.norm1(h + told))
        else:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        x = float(self.skip_scale) * (self.conv1(h) + (x if self.skip is None else self.skip(x)))
        if self.attends:
            b, c, height, width = x.shape
            q, k, v = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, -1).unbind(3)
            weights = torch.softmax(q.transpose(-1, -2) @ k / (c // self.heads) ** 0.5, dim=-1)
            mixed = (v @ weights.transpose(-1, -2)).reshape(b, c, height, width)
            x = float(self.skip_scale) * (self.proj(mixed) + x)
        return x


class PositionalEmbedding(Published):
    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, time: Tensor) -> Tensor:
        half = self.channels // 2
        angles = time[:, None] * 10000.0 ** (-torch.arange(half) / (half - self.endpoint))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(Published):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * (2 * torch.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class _UNet(Published):
    """What both networks have alike: blocks in two dictionaries, run in their order."""

    def _build(
        self,
        resolution: int,
        width: int,
        mults: tuple[int, ...],
        blocks: int,
        attends: tuple[int, ...],
        song: bool,
        taps: Any,
        pyramid: bool,
    ) -> int:
        emb = 4 * width
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, skips = width, [width]
        self.enc[f"{resolution}x{resolution}_conv"] = Conv2d(3, width, 3)
        from_image = 3
        for level, mult in enumerate(mults):
            r = resolution >> level
            if level:
                self.enc[f"{r}x{r}_down"] = UNetBlock(channels, channels, emb, song, taps, "down")
                skips.append(channels)
                if pyramid:
                    self.enc[f"{r}x{r}_aux_residual"] = FusedDown(from_image, channels, 3, "down", taps)
                    from_image = channels
            for i in range(blocks):
                block = UNetBlock(channels, width * mult, emb, song, taps, attention=r in attends)
                self.enc[f"{r}x{r}_block{i}"] = block
                channels = width * mult
                skips.append(channels)
        for level, mult in reversed(list(enumerate(mults))):
            r = resolution >> level
            if level == len(mults) - 1:
                self.dec[f"{r}x{r}_in0"] = UNetBlock(channels, channels, emb, song, taps, attention=True)
                self.dec[f"{r}x{r}_in1"] = UNetBlock(channels, channels, emb, song, taps)
            else:
                self.dec[f"{r}x{r}_up"] = UNetBlock(channels, channels, emb, song, taps, "up")
            for i in range(blocks + 1):
                attention = r in attends and (not song or i == blocks)
                block = UNetBlock(channels + skips.pop(), width * mult, emb, song, taps, attention=attention)
                self.dec[f"{r}x{r}_block{i}"] = block
                channels = width * mult
        return channels

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        pyramid, skips = x, []
        for name, block in self.enc.items():
            if name.endswith("_aux_residual"):
                x = pyramid = skips[-1] = (x + block(pyramid)) / 2**0.5
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        for name, block in self.dec.items():
            if isinstance(block, UNetBlock):
                x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return x


class DhariwalUNet(_UNet):
    """ADM."""

    def __init__(
        self,
        resolution: int = 16,
        classes: int = 5,
        width: int = 128,
        mults: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attends: tuple[int, ...] = (8,),
    ) -> None:
        super().__init__()
        self.map_noise = PositionalEmbedding(width, endpoint=False)
        self.map_layer0, self.map_layer1 = Linear(width, 4 * width), Linear(4 * width, 4 * width)
        self.map_label = Linear(classes, 4 * width, bias=False) if classes else None
        channels = self._build(resolution, width, mults, blocks, attends, False, (1, 1), False)
        self.out_norm, self.out_conv = GroupNorm(channels, 1e-5), Conv2d(channels, 3, 3)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(time))))
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        return self.out_conv(F.silu(self.out_norm(self._run(x, F.silu(emb)))))


class SongUNet(_UNet):
    """DDPM++, or NCSN++ with `ncsn`."""

    def __init__(
        self,
        resolution: int = 16,
        classes: int = 5,
        width: int = 32,
        mults: tuple[int, ...] = (2, 2),
        blocks: int = 2,
        attends: tuple[int, ...] = (8,),
        ncsn: bool = False,
    ) -> None:
        super().__init__()
        noise = 2 * width if ncsn else width
        self.map_noise = FourierEmbedding(noise) if ncsn else PositionalEmbedding(noise, endpoint=True)
        self.map_label = Linear(classes, noise) if classes else None
        self.map_augment = Linear(9, noise, bias=False)
        self.map_layer0, self.map_layer1 = Linear(noise, 4 * width), Linear(4 * width, 4 * width)
        channels = self._build(resolution, width, mults, blocks, attends, True, (1, 3, 3, 1) if ncsn else (1, 1), ncsn)
        self.dec[f"{resolution}x{resolution}_aux_norm"] = GroupNorm(channels, 1e-6)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = Conv2d(channels, 3, 3)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(time).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * labels.shape[1] ** 0.5)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        x, norm, conv = self._run(x, emb), *list(self.dec.values())[-2:]
        return conv(F.silu(norm(x)))


class EDMPrecond(Published):
    """x0 = D(x, sigma): table 1 of the paper."""

    def __init__(self, model: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.sigma_data = 0, float("inf"), sigma_data
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        s, d = sigma[:, None, None, None], self.sigma_data
        out = self.model(x / (s**2 + d**2).sqrt(), sigma.log() / 4, labels)
        return d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * out


def save_published(content: Any, path: Path) -> None:
    """Pickles `content` with the published modules' names, which cannot be imported afterwards."""
    with _published_modules(), path.open("wb") as file:
        pickle.dump(content, file)


def checkpoint(network: nn.Module) -> dict[str, Any]:
    """What a published pickle holds."""
    return {
        "ema": network.eval().requires_grad_(False),
        "augment_pipe": None,
        "dataset_kwargs": EasyDict(path="images.zip", resolution=16),
        "extra": OrderedDict(std=np.float64(0.5)),
    }


@contextmanager
def _published_modules() -> Iterator[None]:
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    names = {"torch_utils.persistence": persistence, "dnnlib.util": util}
    names |= {name: ModuleType(name) for name in ("torch_utils", "dnnlib")}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
