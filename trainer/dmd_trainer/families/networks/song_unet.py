"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H) as EDM trains them on CIFAR-10.

`UNet2DModel` cannot carry them: its first convolution and its time embedding are as wide as the first level (CIFAR-10:
128 before levels of 256), and its residual blocks have no output scale. The parts are all diffusers' own, and so are
the names, the call and the folder: `mid_block` is the bottleneck, `class_embedding` is None without labels.

The file imports torch and diffusers alone, so that it can be shipped beside weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

EPS = 1e-6
"""Of every normalisation."""
OUTPUT_SCALE = math.sqrt(2)
"""What every sum of two branches is divided by, which keeps its variance (arXiv 2011.13456, appendix H)."""


def norm_groups(channels: int) -> int:
    """How many groups a normalisation of `channels` has: 32, and four channels or more in each."""
    return min(32, channels // 4)


class SongUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The U-Net of DDPM++ (positional time, box filter) and NCSN++ (Fourier time, FIR filter, residual input pyramid).

    Args:
        sample_size: height and width of a sample.
        in_channels: of a sample.
        out_channels: of the output.
        model_channels: of the first convolution; the time embedding's width is a multiple of it.
        block_out_channels: of each level, the finest first.
        layers_per_block: residual blocks of a level on the way down; one more on the way up.
        attention_levels: the levels with self-attention, 0 being the finest.
        time_embedding_type: "positional", or "fourier" for the random frequencies of NCSN++.
        time_embedding_channels: of the sines and cosines.
        time_scale: what `timestep` is multiplied by; 0.001 makes 250 ln(sigma), which consistency models are told,
            EDM's ln(sigma) / 4.
        embedding_channels: of the embedding that residual blocks are given.
        resample: "box" ([1, 1]) or "fir" ([1, 3, 3, 1]), the filter of the blocks that change the resolution.
        input_pyramid: whether the filtered input is added to each level on the way down ("residual" in the paper).
        num_class_embeds: how many labels there are; None for an unconditional network.
        dropout: within the residual blocks.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attention_levels: tuple[int, ...] = (1,),
        time_embedding_type: str = "positional",
        time_embedding_channels: int = 128,
        time_scale: float = 1.0,
        embedding_channels: int = 512,
        resample: str = "box",
        input_pyramid: bool = False,
        num_class_embeds: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        resnet = _resnets(embedding_channels, dropout, resample)
        self.conv_in = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.time_proj: nn.Module
        if time_embedding_type == "fourier":
            self.time_proj = GaussianFourierProjection(time_embedding_channels // 2, scale=16, log=False)
        else:
            self.time_proj = Timesteps(time_embedding_channels, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.class_embedding = (
            None if num_class_embeds is None else nn.Embedding(num_class_embeds, time_embedding_channels)
        )
        self.time_embedding = TimestepEmbedding(time_embedding_channels, embedding_channels)

        self.down_blocks = nn.ModuleList()
        skips, channels, pyramid = [model_channels], model_channels, in_channels
        for level, width in enumerate(block_out_channels):
            block = _DownBlock()
            if level > 0:
                block.downsampler = resnet(channels, channels, down=True)
                if input_pyramid:
                    block.pyramid = FirDownsample2D(pyramid, channels, use_conv=True)
                    pyramid = channels
                skips.append(channels)
            for _ in range(layers_per_block):
                block.resnets.append(resnet(channels, width))
                if level in attention_levels:
                    block.attentions.append(_attention(width))
                channels = width
                skips.append(channels)
            self.down_blocks.append(block)

        self.mid_block = UNetMidBlock2D(
            channels,
            embedding_channels,
            dropout,
            resnet_eps=EPS,
            resnet_groups=norm_groups(channels),
            attention_head_dim=channels,
            output_scale_factor=OUTPUT_SCALE,
        )

        self.up_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(block_out_channels))):
            up = _UpBlock()
            if level < len(block_out_channels) - 1:
                up.upsampler = resnet(channels, channels, up=True)
            for _ in range(layers_per_block + 1):
                up.resnets.append(resnet(channels + skips.pop(), width))
                channels = width
            if level in attention_levels:
                up.attention = _attention(width)
            self.up_blocks.append(up)

        self.conv_norm_out = nn.GroupNorm(norm_groups(channels), channels, eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The network's output for samples [B, C, H, W] at `timestep` ([B] or one for all) with labels [B].

        Raises:
            ValueError: labels without an embedding for them, or an embedding without labels.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError("class_labels go with num_class_embeds: give both or none")
        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        projected = self.time_proj(self.config.time_scale * time.float()).to(self.dtype)
        if self.class_embedding is not None:
            projected = projected + self.class_embedding(class_labels).to(self.dtype)
        embedding = self.time_embedding(projected)

        hidden = self.conv_in(sample)
        skips, pyramid = [hidden], sample
        for block in self.down_blocks:
            hidden, pyramid, states = block(hidden, pyramid, embedding, self._run)
            skips += states
        hidden = self.mid_block(hidden, embedding)
        for block in self.up_blocks:
            count = self.config.layers_per_block + 1
            hidden = block(hidden, skips[-count:], embedding, self._run)
            del skips[-count:]
        output = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _run(self, block: nn.Module, *arguments: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


class _DownBlock(nn.Module):
    """One level on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.downsampler: nn.Module | None = None
        self.pyramid: nn.Module | None = None
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()

    def forward(
        self, hidden: Tensor, pyramid: Tensor, embedding: Tensor, run: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        states = []
        if self.downsampler is not None:
            hidden = run(self.downsampler, hidden, embedding)
            if self.pyramid is not None:
                hidden = pyramid = (hidden + self.pyramid(pyramid)) / OUTPUT_SCALE
            states.append(hidden)
        for index, resnet in enumerate(self.resnets):
            hidden = run(resnet, hidden, embedding)
            if self.attentions:
                hidden = self.attentions[index](hidden)
            states.append(hidden)
        return hidden, pyramid, states


class _UpBlock(nn.Module):
    """One level on the way up; unlike `UNet2DModel`'s, it attends once, after its last residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.upsampler: nn.Module | None = None
        self.resnets = nn.ModuleList()
        self.attention: nn.Module | None = None

    def forward(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor, run: Callable[..., Tensor]) -> Tensor:
        if self.upsampler is not None:
            hidden = run(self.upsampler, hidden, embedding)
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            hidden = run(resnet, torch.cat([hidden, skip], dim=1), embedding)
        return hidden if self.attention is None else self.attention(hidden)


def _resnets(embedding_channels: int, dropout: float, resample: str) -> Callable[..., ResnetBlock2D]:
    def resnet(channels: int, out_channels: int, **change: Any) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=channels,
            out_channels=out_channels,
            temb_channels=embedding_channels,
            dropout=dropout,
            groups=norm_groups(channels),
            groups_out=norm_groups(out_channels),
            eps=EPS,
            kernel="fir" if resample == "fir" else "sde_vp",
            output_scale_factor=OUTPUT_SCALE,
            # A change of resolution has a projection on its shortcut even where the channels stay.
            use_in_shortcut=True if change else None,
            **change,
        )

    return resnet


def _attention(channels: int) -> Attention:
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        rescale_output_factor=OUTPUT_SCALE,
        eps=EPS,
        norm_num_groups=norm_groups(channels),
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
        _from_deprecated_attn_block=True,
    )
