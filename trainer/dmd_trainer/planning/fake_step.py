"""One training step on tensors without data: how much its activations hold, and how much its passes compute.

The networks are the configured ones at their real sizes, the step is the one that trains (`dmd/step.py`), and every
tensor is a fake one (`FakeTensorMode`): shapes, dtypes and lifetimes are as in the real step, contents are not.
"""

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dmd_trainer.diffusion.denoiser import Denoiser, Guided
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import NoiseLevel, Schedule
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.dmd.regression import LPIPS_SIZE
from dmd_trainer.dmd.step import (
    FakeScoreDraws,
    GeneratorDraws,
    Images,
    Latent,
    Models,
    Noise,
    PairBatch,
    fake_score_losses,
    generator_losses,
    regression_alone,
)
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.gpus import Flops
from dmd_trainer.planning.shape import StepShape


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensor storages that operations below it make, from birth to death.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def measure_activations(architecture: Architecture, shape: StepShape) -> int:
    """The most bytes that a step's tensors hold at once, without weights, their gradients and states."""
    networks = _Networks(architecture, shape)
    with FakeTensorMode():
        networks.fill()
        models, live = networks.models(), LiveTensors()
        with live:
            if shape.matching:
                _update_generator(models, architecture, shape, networks)
                _update_fake_score(models, architecture, shape)
            else:
                losses = regression_alone(models, _pairs(architecture, shape))
                torch.autograd.backward(list(losses.values()))
    return live.peak


def count_flops(architecture: Architecture) -> Flops:
    """Counts the operations of one sample's forward passes."""
    network = architecture.build_network()
    decoder: Any = None if architecture.decoder is None else architecture.build_decoder()
    with FakeTensorMode(), torch.no_grad():
        sample = torch.empty(1, *architecture.sample_shape)
        denoiser = Denoiser(_fill(network), _levels(), Prediction.EPSILON)
        with FlopCounterMode(display=False) as counter:
            denoiser(sample, _level(1), architecture.conditions(1))
        passes = float(counter.get_total_flops())
        if decoder is None:
            return Flops(passes, 0.0)
        _fill(decoder)
        with FlopCounterMode(display=False) as counter:
            decoder.decode(sample)
        return Flops(passes, float(counter.get_total_flops()))


def _update_generator(models: Models, architecture: Architecture, shape: StepShape, networks: "_Networks") -> None:
    batch = shape.micro_batch
    latent = Latent(_samples(architecture, batch), architecture.conditions(batch), 0)
    pairs = _pairs(architecture, shape) if shape.pairs else None
    gan = _noise(architecture, batch) if shape.gan else None
    # As `TrainedNetwork.requires_grad`: the GAN term's gradients pass through the fake score and stop at its weights.
    networks.fake_score.requires_grad_(shape.gathered)
    losses, _ = generator_losses(models, GeneratorDraws(latent, _noise(architecture, batch), pairs, gan))
    torch.stack(list(losses.values())).sum().backward()
    networks.fake_score.requires_grad_(True)


def _update_fake_score(models: Models, architecture: Architecture, shape: StepShape) -> None:
    batch = shape.micro_batch
    images = Images(_samples(architecture, batch), architecture.conditions(batch))
    gan = None
    if shape.gan:
        real = Images(_samples(architecture, batch), images.condition)
        gan = (real, _noise(architecture, batch), _noise(architecture, batch))
    losses = fake_score_losses(models, images, FakeScoreDraws(_noise(architecture, batch), gan))
    torch.stack(list(losses.values())).sum().backward()


def _samples(architecture: Architecture, batch: int) -> Tensor:
    return torch.empty(batch, *architecture.sample_shape)


def _pairs(architecture: Architecture, shape: StepShape) -> PairBatch:
    batch = shape.micro_batch
    return PairBatch(_samples(architecture, batch), _samples(architecture, batch), architecture.conditions(batch))


def _noise(architecture: Architecture, batch: int) -> Noise:
    return Noise(_samples(architecture, batch), _level(batch))


def _levels() -> Schedule:
    """Noise levels without values; what memory and operations depend on are their shapes."""
    one = torch.empty(1, dtype=torch.float64)
    return Schedule(alphas=one, sigmas=one, times=one)


def _level(batch: int) -> NoiseLevel:
    values = torch.empty(batch, dtype=torch.float64)
    return NoiseLevel(alpha=values, sigma=values, time=values)


class _Networks:
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
        _fill(self.teacher, narrow or shape.teacher_bf16)
        for network in (self.generator, self.fake_score):
            _fill(network, narrow)
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for frozen in (self.vae, self.distance):
            if frozen is not None:
                _fill(frozen)
        if shape.gpu:
            for network in (self.teacher, self.generator, self.fake_score):
                for module in network.modules():
                    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                        module.register_forward_pre_hook(_in_float32)

    def models(self) -> Models:
        """What the step calls, around the networks."""
        shape = self.shape
        # Every prediction type has as many and as large tensors as another.
        denoiser = Denoiser(self.generator, _levels(), Prediction.EPSILON, torch.bfloat16 if shape.bf16 else None)
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


def decode_ends(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decodes as the real step does, one by one with activations computed again, but runs the first and last alone.

    What lives grows from one image to the next: forwards by the images, backwards by their latents' gradients. So a
    peak is in the last one's forward or in the first one's backward pass, and the others need only make these.
    """
    first, *between, last = latents.split(1) if len(latents) > 1 else (None, latents)
    ends = [] if first is None else [checkpoint(decode, first, use_reentrant=False)]
    images = ends + [_Unpassed.apply(part, ends[0].shape) for part in between]
    return torch.cat([*images, checkpoint(decode, last, use_reentrant=False)])


class _Unpassed(torch.autograd.Function):
    """Stands for the decoder: makes the output and the input's gradient, and nothing in between."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = latents.shape
        return latents.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].new_empty(ctx.shape), None


def _fill(network: nn.Module, narrow: bool = False) -> nn.Module:
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
