"""The GPU memory of a manifest's training step, from configurations alone.

Activations are measured by running the step on fake tensors (`fake_step`); weights, gradients and optimizer states are
counted. What it is checked against is in `tests/trainer/test_memory.py`.
"""

import dataclasses
import math
from dataclasses import dataclass

from dmd_api.manifest import DMDDistillation
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.measured import Sizes, measure_activations, network_sizes
from dmd_trainer.planning.shape import step_shape

FLOAT32 = 4
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}
ADAM_MOMENTS = 2
LPIPS_PARAMETERS = 14_714_688
"""VGG16's convolutions."""


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
    return network_sizes(architecture, method.fake_score_updates > 0, method.gan is not None, method.lora)


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
