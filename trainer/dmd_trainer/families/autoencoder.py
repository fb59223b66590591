"""Between images and what a teacher denoises: latents, or the images themselves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmd_trainer.families.loading import META, load_part


class Pixels(nn.Module):
    """A pixel teacher's: nothing to do."""

    scale = 1
    """Pixels along an edge for each of the latents'."""
    image_channels: int | None = None

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        return latents

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images."""
        return images


class Autoencoder(Pixels):
    """A latent teacher's VAE, its latents scaled to about unit variance (arXiv 2112.10752, appendix G).

    Args:
        directory: a pipeline with `vae/`.
        statistics: from the VAE's configuration to the mean and standard deviation that the pipeline reads there.
        dtype: what its weights are kept in.
        device: the meta device, if no weights are to be read.

    Raises:
        BadInputError: there is none, or it cannot be loaded.
    """

    def __init__(
        self,
        directory: Path,
        statistics: Callable[[Mapping[str, Any]], tuple[Sequence[float], Sequence[float]]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        options = {"device_map": META} if device is not None and device.type == META else {}
        self.vae = load_part(directory, "vae", AutoencoderKL, **options)
        # Networks that overflow in half precision say so (SDXL's).
        self.dtype = torch.float32 if self.vae.config.force_upcast else dtype
        self.vae.requires_grad_(False).eval().to(self.dtype)
        self.scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_channels = int(self.vae.config.out_channels)
        self._factor = float(self.vae.config.scaling_factor)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in statistics(self.vae.config))
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", mean)
        self.register_buffer("_std", std)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of latents; with gradients, one at a time, its activations made again.

        Of a 512x512 image the decoder's activations are some gigabytes: a batch of them would not fit.
        """
        if not (torch.is_grad_enabled() and latents.requires_grad):
            return self._decode(latents)
        return torch.cat([checkpoint(self._decode, part, use_reentrant=False) for part in latents.split(1)])

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(
            (latents * self._std / self._factor + self._mean).to(self.dtype), return_dict=False
        )[0]
        return images.to(latents.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]: the mode of what the encoder says."""
        mode = self.vae.encode(images.to(self.dtype)).latent_dist.mode()
        return ((mode - self._mean) * self._factor / self._std).to(images.dtype)
