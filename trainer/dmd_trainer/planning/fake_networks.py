"""A step's networks at their real sizes, without data: what the estimates of memory and of operations call."""

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd_trainer.diffusion.denoiser import Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.dmd.regression import LPIPS_SIZE
from dmd_trainer.dmd.step import Models
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.fake_decoder import decode_ends
from dmd_trainer.planning.shape import StepShape


class FakeNetworks:
    """The networks of a step; filled and called below a `FakeTensorMode`."""

    def __init__(self, architecture: Architecture, shape: StepShape) -> None:
        self.architecture, self.shape = architecture, shape
        family = architecture.family
        network: Any = architecture.build_network()
        if shape.checkpointing:
            network.enable_gradient_checkpointing()
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.generator = network
        with torch.device("meta"):
            fake_score = copy.deepcopy(network)
            self.fake_score = FakeScore(fake_score, family.tap(fake_score) if shape.gan else None)
            if shape.lora is not None:
                add_lora(network, shape.lora, family.adapted_layers)
        self.vae: Any = None
        self.distance: nn.Module | None = None
        if shape.lpips:
            import lpips

            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of lpips' own call of torchvision
                distance = lpips.LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
            self.distance = distance.requires_grad_(False)
            if architecture.decoder is not None:
                self.vae = architecture.build_decoder().requires_grad_(False)

    def fill(self) -> None:
        """Gives the networks fake weights: until then they are on the meta device, which has no lifetimes."""
        shape = self.shape
        narrow = shape.bf16 and shape.gathered
        fill(self.teacher, narrow or shape.teacher_bf16)
        for network in (self.generator, self.fake_score):
            fill(network, narrow)
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for frozen in (self.vae, self.distance):
            if frozen is not None:
                fill(frozen)
        if shape.gpu:
            for network in (self.teacher, self.generator, self.fake_score):
                for module in network.modules():
                    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                        module.register_forward_pre_hook(_in_float32)

    def models(self) -> Models:
        """What the step calls, around the networks."""
        shape = self.shape
        # Every prediction type has as many and as large tensors as another.
        denoiser = Denoiser(self.generator, fake_levels(), Prediction.EPSILON, torch.bfloat16 if shape.bf16 else None)
        teacher = denoiser.with_network(self.teacher, torch.bfloat16 if shape.bf16 or shape.teacher_bf16 else None)
        negative = self.architecture.conditions(1) if shape.guided else None
        return Models(
            generator=Generator(denoiser, timesteps=(0,)),
            mu_real=Guided(teacher, 2.0 if shape.guided else 1.0, negative),
            mu_fake=denoiser.with_network(self.fake_score, denoiser.autocast),
            regression_loss=self._regression,
        )

    def _regression(self, generated: Tensor, reference: Tensor) -> Tensor:
        if self.distance is None:
            return F.mse_loss(generated, reference)
        with torch.no_grad():
            reference = self._decode(reference)
        return self.distance(self._decode(generated), reference).mean()

    def _decode(self, latents: Tensor) -> Tensor:
        """Images; with gradients one at a time, their activations computed again (`autoencoder.py`)."""
        if self.architecture.decoder is None:
            images = latents.expand(-1, 3, -1, -1)
            return F.interpolate(images, LPIPS_SIZE, mode="bilinear") if images.shape[-1] < LPIPS_SIZE else images

        def decode(part: Tensor) -> Tensor:
            return self.vae.decode(part / 1.0, return_dict=False)[0]

        if not latents.requires_grad:
            return decode(latents)
        return decode_ends(decode, latents)


def fake_levels() -> Schedule:
    """Noise levels without values; what memory and operations depend on are their shapes."""
    one = torch.empty(1, dtype=torch.float64)
    return Schedule(alphas=one, sigmas=one, times=one)


def noise_level(batch: int) -> NoiseLevel:
    values = torch.empty(batch, dtype=torch.float64)
    return NoiseLevel(alpha=values, sigma=values, time=values)


def fill(network: nn.Module, narrow: bool = False) -> nn.Module:
    """Replaces weights on the meta device by fake ones on the CPU, if `narrow` in bfloat16 but for normalisations."""
    for module in network.modules():
        keeps = not narrow or isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype if keeps else torch.bfloat16)
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # Outside autocast the samples are of this type already.
    return (inputs[0].float(), *inputs[1:])
