"""The settings that make a manifest's training step fit into a GPU's memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import Lora
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.memory import MemoryEstimate, estimate_memory


class Fit(NamedTuple):
    """What makes a step smaller.

    Attributes:
        settings: as a manifest has them, in the order they were added.
        estimate: with all of them.
        manifest: with all of them.
    """

    settings: list[str]
    estimate: MemoryEstimate
    manifest: DMDDistillation


def enough_settings(manifest: DMDDistillation, architecture: Architecture, limit: float) -> Fit:
    """Settings that bring the estimate below `limit` bytes, each added to those before until it is.

    Where all of them do not do, the estimate stays above `limit`.
    """
    settings: list[str] = []
    estimate = estimate_memory(manifest, architecture)
    for change in CHANGES:
        # A change may have several steps (smaller and smaller micro-batches), of which the last one counts.
        start = len(settings)
        while estimate.total > limit and (changed := change(manifest)) is not None:
            setting, candidate = changed
            smaller = estimate_memory(candidate, architecture)
            if smaller.total >= estimate.total:
                break
            manifest, estimate = candidate, smaller
            settings[start:] = [setting]
    return Fit(settings, estimate, manifest)


def _with(manifest: DMDDistillation, part: str, **values: Any) -> DMDDistillation:
    """The manifest with fields of a part of its `spec` changed."""
    changed = getattr(manifest.spec, part).model_copy(update=values)
    return manifest.model_copy(update={"spec": manifest.spec.model_copy(update={part: changed})})


Change = Callable[[DMDDistillation], tuple[str, DMDDistillation] | None]
"""A setting and the manifest with it; None where it is set already or cannot be."""


def _shard(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    if manifest.spec.training.sharding == "FSDP" or manifest.world_size == 1:
        return None
    return "training.sharding: FSDP", _with(manifest, "training", sharding="FSDP")


def _checkpoint_activations(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    if manifest.spec.training.activation_checkpointing:
        return None
    return "training.activationCheckpointing: true", _with(manifest, "training", activation_checkpointing=True)


def _shrink_micro_batch(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    """The next smaller size, at most half as large, that divides a process's share."""
    share = manifest.spec.training.batch_size // manifest.world_size
    size = manifest.spec.training.micro_batch_size or share
    smaller = next((n for n in range(size // 2, 0, -1) if share % n == 0), None)
    if smaller is None:
        return None
    return f"training.microBatchSize: {smaller}", _with(manifest, "training", micro_batch_size=smaller)


def _narrow_teacher(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    if manifest.spec.teacher.weights == "fp8":
        return None
    return "teacher.weights: fp8", _with(manifest, "teacher", weights="fp8")


def _offload_teacher(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    if manifest.spec.teacher.offload:
        return None
    return "teacher.offload: true", _with(manifest, "teacher", offload=True)


def _adapt(manifest: DMDDistillation) -> tuple[str, DMDDistillation] | None:
    if manifest.spec.method.lora is not None or manifest.spec.data.prompts is None:
        return None
    lora = Lora()
    return f"method.lora: {{rank: {lora.rank}}}", _with(manifest, "method", lora=lora)


CHANGES: tuple[Change, ...] = (
    _shard,
    _checkpoint_activations,
    _shrink_micro_batch,
    _narrow_teacher,
    _offload_teacher,
    _adapt,
)
"""In the order they are tried: those first that change no result, last the one that trains something else."""
