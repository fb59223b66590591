"""The GPU memory of a manifest's training step, from configurations alone.

Activations are measured by running the step on fake tensors (`fake_step`); weights, gradients and optimizer states are
counted. What it is checked against is in `tests/trainer/test_memory.py`.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import Lora
from dmd_trainer.distributed.sharding import blocks
from dmd_trainer.dmd.gan import FakeScore
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.fake_step import StepShape, measure_activations

FLOAT32 = 4
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}
ADAM_MOMENTS = 2
LPIPS_PARAMETERS = 14_714_688
"""VGG16's convolutions."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of weights of a run's networks.

    Attributes:
        network: the denoising network.
        largest_block: its largest part that is gathered at once where weights are sharded.
        generator: what is trained of the generator: all of it, or its adapters.
        adapters: the generator's low-rank adapters; 0 without them.
        fake_score: the fake score with the GAN head; 0 in a run without one.
        decoder: the VAE.
        encoders: the text encoders.
    """

    network: int
    largest_block: int
    generator: int
    adapters: int
    fake_score: int
    decoder: int
    encoders: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU at a step's peak.

    Attributes:
        frozen: teacher, VAE, text encoders and LPIPS's network.
        trained: generator and fake score (where there is one) in float32; their shards under FSDP.
        gradients: of what is trained of them.
        optimizer: Adam's moments.
        ema: the generator's average.
        gathered: whole weights and gradients where they are sharded otherwise (FSDP).
        activations: everything else that lives at the peak: activations and casts of weights, or the buffers of an
            update where they are larger.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    ema: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


def count_sizes(manifest: DMDDistillation, architecture: Architecture) -> Sizes:
    """Counts the weights of a run's networks, without making them."""
    method = manifest.spec.method
    return _count_sizes(architecture, method.fake_score_updates > 0, method.gan is not None, method.lora)


@lru_cache(maxsize=16)
def _count_sizes(architecture: Architecture, matching: bool, gan: bool, lora: Lora | None) -> Sizes:
    network = architecture.build_network()
    parameters = _count(network)
    sizes = [_count(block) for block in blocks(network)]
    with torch.device("meta"):
        fake_score = _count(FakeScore(network, gan=gan)) if matching else 0
        if lora is not None:
            add_lora(network, lora)
    adapters = _count(network) - parameters
    return Sizes(
        network=parameters,
        largest_block=max(sizes),
        generator=adapters or parameters,
        adapters=adapters,
        fake_score=fake_score,
        decoder=0 if architecture.decoder is None else _count(architecture.build_decoder()),
        encoders=architecture.encoder_parameters,
    )


def estimate_memory(manifest: DMDDistillation, architecture: Architecture, *, gpu: bool = True) -> MemoryEstimate:
    """Estimates the peak of one of the manifest's processes.

    Args:
        manifest: says what is trained and how.
        architecture: of its teacher.
        gpu: whether autocast follows the GPU's rules or, for comparison with a run there, the CPU's.
    """
    training = manifest.spec.training
    sizes = count_sizes(manifest, architecture)
    shape = step_shape(manifest, gpu=gpu)
    shards = manifest.world_size if training.sharding == "FSDP" else 1
    trained = math.ceil((sizes.generator + sizes.fake_score) / shards)

    # An update's memory besides the weights, when its activations are gone: all gradients in one buffer to
    # average them, or with shards the square roots of Adam's second moments.
    largest = FLOAT32 * max(sizes.generator, sizes.fake_score)
    update = math.ceil(largest / shards) if manifest.world_size > 1 else 0
    gathered = _gathered(manifest, sizes, largest) if shards > 1 else 0
    return MemoryEstimate(
        frozen=_frozen(manifest, architecture, sizes, shards),
        trained=FLOAT32 * math.ceil((sizes.network + sizes.adapters + sizes.fake_score) / shards),
        gradients=FLOAT32 * trained,
        optimizer=FLOAT32 * ADAM_MOMENTS * trained,
        ema=FLOAT32 * math.ceil((sizes.network + sizes.adapters) / shards),
        gathered=gathered,
        activations=max(measure_activations(architecture, shape), update - gathered),
    )


def step_shape(manifest: DMDDistillation, *, gpu: bool = True) -> StepShape:
    """Reads the settings that decide the activations."""
    spec = manifest.spec
    training, method = spec.training, spec.method
    share = training.batch_size // manifest.world_size
    return StepShape(
        micro_batch=training.micro_batch_size or share,
        guided=spec.teacher.guidance_scale != 1,
        pairs=method.regression is not None,
        lpips=method.regression is not None and method.regression.loss == "LPIPS",
        gan=method.gan is not None,
        matching=method.fake_score_updates > 0,
        bf16=training.precision == "bf16",
        teacher_bf16=spec.teacher.weights != "fp32",
        gathered=training.sharding == "FSDP" and manifest.world_size > 1,
        checkpointing=training.activation_checkpointing,
        lora=method.lora,
        gpu=gpu,
    )


def _frozen(manifest: DMDDistillation, architecture: Architecture, sizes: Sizes, shards: int) -> int:
    """Bytes of the frozen networks. Encoders stay where a prompt's embedding was not yet there (`prompts.py`)."""
    kept = WEIGHT_BYTES[manifest.spec.teacher.weights]
    # Offloaded layer by layer, the teacher takes no room worth counting. Nothing but it is kept in 8 bits.
    teacher = 0 if manifest.spec.teacher.offload else kept * math.ceil(sizes.network / shards)
    narrow = max(kept, 2)
    upcast = architecture.decoder is not None and architecture.decoder.get("force_upcast", True)
    lpips = LPIPS_PARAMETERS * FLOAT32 if step_shape(manifest).lpips else 0
    return teacher + sizes.decoder * (FLOAT32 if upcast else narrow) + sizes.encoders * narrow + lpips


def _gathered(manifest: DMDDistillation, sizes: Sizes, gradients: int) -> int:
    """Bytes of what FSDP gathers: two blocks' weights, and a block's gradient with the buffer it is reduced from.

    Between the micro-batches of one update, a network's gradients are whole and in float32 (`set_gradient_sync`).
    """
    training = manifest.spec.training
    computed = 2 if training.precision == "bf16" else FLOAT32
    share = training.batch_size // manifest.world_size
    accumulating = (training.micro_batch_size or share) < share
    at_once = sizes.largest_block * (2 * computed + computed + FLOAT32)
    return at_once + (gradients if accumulating else 0)


def _count(module: nn.Module) -> int:
    return sum(torch.Size(parameter.shape).numel() for parameter in module.parameters())
