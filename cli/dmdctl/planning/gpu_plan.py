"""What a plan says of GPUs: how much memory each needs, which settings make one enough, how long, how much storage."""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dmd_api.errors import BadInputError
from dmd_api.manifest import DMDDistillation, Lora
from dmd_api.runtime import Stage
from dmd_api.uris import parse_uri
from dmdctl.display import duration
from dmdctl.planning.work import Work

if TYPE_CHECKING:
    from dmd_trainer.families.architectures import Architecture
    from dmd_trainer.planning.fake_step import Flops
    from dmd_trainer.planning.memory import MemoryEstimate, Sizes

ANNOTATION = "dmd-operator.io/architecture"
GIGABYTE = 10**9
MEMORY_SIZES = (16, 24, 40, 48, 80, 141)
"""Of GPUs, in GB of 10^9 bytes. What cards have above their name is left to the driver and to fragmentation."""
UTILISATION = 0.4
"""How much of its peak a GPU reaches in such networks."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Gpu:
    """A GPU's published peaks, dense, in operations a second.

    Attributes:
        bf16: of its matrix units.
        fp32: of its other units, which fp32 networks run on.
    """

    bf16: float
    fp32: float


GPUS = {
    "A10": Gpu(125e12, 31.2e12),
    "A100": Gpu(312e12, 19.5e12),
    "B200": Gpu(2250e12, 80e12),
    "H100": Gpu(989e12, 67e12),
    "H200": Gpu(989e12, 67e12),
    "L4": Gpu(121e12, 30.3e12),
    "L40S": Gpu(362e12, 91.6e12),
    "RTX4090": Gpu(165e12, 82.6e12),
}
PARTS = {
    "trained": "generator and fake score",
    "gradients": "their gradients",
    "optimizer": "Adam's moments",
    "ema": "EMA",
    "frozen": "frozen networks",
    "gathered": "gathered shards",
    "activations": "activations of {} samples",
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        BadInputError: it is not known.
    """
    found = {key.lower(): gpu for key, gpu in GPUS.items()}.get(name.lower().replace(" ", ""))
    if found is None:
        raise BadInputError(f"--gpu: {name!r} is not known here; must be one of {', '.join(GPUS)}")
    return found


def show_gpu_plan(console: Console, manifest: DMDDistillation, work: Work, gpu: str, gpu_memory: int) -> None:
    """Prints what one GPU must hold, what makes it enough, how long all of them take, and the storage.

    Raises:
        BadInputError: the GPU, or the architecture that the manifest's annotation names, is not known.
    """
    peak = find_gpu(gpu)
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        console.print("memory and time on GPUs: need the trainer; pip install 'dmd-operator[trainer]'", markup=False)
        return
    architecture = architecture_of(manifest)
    if architecture is None:
        from dmd_trainer.families.architectures import KNOWN

        console.print(
            f"memory and time on GPUs: the teacher's architecture is not known; name it in metadata.annotations: "
            f"{ANNOTATION}: {' | '.join(KNOWN)}",
            highlight=False,
        )
        return
    from dmd_trainer.planning.fake_step import count_flops
    from dmd_trainer.planning.memory import count_sizes, estimate_memory, step_shape

    with console.status("running a step without data"):
        estimate = estimate_memory(manifest, architecture)
    sharded = ", sharded" if manifest.spec.training.sharding == "FSDP" else ""
    console.print(
        f"\n[italic]Memory of each GPU ({architecture.name}, {manifest.world_size} GPUs{sharded})", highlight=False
    )
    console.print(_memory_table(estimate, step_shape(manifest).micro_batch))
    console.print(_enough(estimate.total), highlight=False)
    if estimate.total > gpu_memory * GIGABYTE:
        with console.status("looking for settings that need less"):
            console.print(_advice(manifest, architecture, gpu_memory), highlight=False)
    console.print()
    console.print(_time(manifest, work, count_flops(architecture), gpu, peak), highlight=False)
    for line in _storage(manifest, architecture, count_sizes(manifest, architecture)):
        console.print(line, highlight=False)


def architecture_of(manifest: DMDDistillation) -> "Architecture | None":
    """The teacher's: what an annotation names, what is in its folder, or what its published name says.

    Raises:
        BadInputError: the annotation names none that is known, or the folder is no diffusers pipeline.
    """
    from dmd_trainer.families.architectures import guess_architecture, known_architecture, read_architecture
    from dmd_trainer.runtime.fetch import local_path

    uri = manifest.spec.teacher.uri
    if (name := manifest.metadata.annotations.get(ANNOTATION)) is not None:
        return known_architecture(name)
    if at_hand(manifest):
        with tempfile.TemporaryDirectory() as scratch:
            return read_architecture(local_path(uri, Path(scratch)))
    return guess_architecture(uri)


def at_hand(manifest: DMDDistillation) -> bool:
    """Whether the teacher is on this machine."""
    return parse_uri(manifest.spec.teacher.uri).scheme in {"file", "builtin"}


def enough_settings(
    manifest: DMDDistillation, architecture: "Architecture", limit: float
) -> tuple[list[str], "MemoryEstimate"]:
    """Settings that bring the estimate below `limit` bytes, each added to those before until it is.

    Returns:
        The settings, and the estimate with all of them; that is above `limit` where they do not do.
    """
    from dmd_trainer.planning.memory import estimate_memory

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
    return settings, estimate


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


def _memory_table(estimate: "MemoryEstimate", micro_batch: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    table.add_column("memory", justify="right")
    for part in fields(estimate):
        if size := getattr(estimate, part.name):
            table.add_row(PARTS[part.name].format(micro_batch), _size(size))
    table.add_row("[bold]at the peak", f"[bold]{_size(estimate.total)}")
    return table


def _enough(total: int) -> str:
    sizes = [size for size in MEMORY_SIZES if size * GIGABYTE >= total]
    return f"enough: GPUs of {', '.join(map(str, sizes))} GB" if sizes else "enough: no single GPU of today"


def _advice(manifest: DMDDistillation, architecture: "Architecture", gpu_memory: int) -> str:
    settings, estimate = enough_settings(manifest, architecture, gpu_memory * GIGABYTE)
    changes = "".join(f"\n  {setting}" for setting in settings)
    if estimate.total <= gpu_memory * GIGABYTE:
        return f"{gpu_memory} GB are enough with ({_size(estimate.total)}):{changes}"
    return (
        f"{gpu_memory} GB are not enough; with these it is {_size(estimate.total)}, "
        f"and more processes would share the rest:{changes}"
    )


def stage_seconds(manifest: DMDDistillation, work: Work, flops: "Flops", gpu: Gpu) -> dict[Stage, float]:
    """How long each stage computes on all of its GPUs."""
    training = manifest.spec.training
    rate = UTILISATION * (gpu.bf16 if training.precision == "bf16" else gpu.fp32)
    # A backward pass is about two forward passes, and one more where activations are made again.
    trained = 4 if training.activation_checkpointing else 3
    seconds = {}
    for stage in (Stage.PREPARE, Stage.DISTILL, Stage.EVALUATE):
        count = manifest.spec.pair_workers.parallelism if stage == Stage.PREPARE else manifest.world_size
        passes = work.forward.get(stage, 0.0) + trained * work.backward.get(stage, 0.0)
        # Where gradients pass the decoder, its activations are always made again.
        decoded = work.decoded.get(stage, 0.0) + 4 * work.decoded_backward.get(stage, 0.0)
        seconds[stage] = (passes * flops.network + decoded * flops.decoder) / (rate * count)
    return seconds


def _time(manifest: DMDDistillation, work: Work, flops: "Flops", name: str, gpu: Gpu) -> str:
    training = manifest.spec.training
    seconds = stage_seconds(manifest, work, flops, gpu)
    peak = gpu.bf16 if training.precision == "bf16" else gpu.fp32
    parts = [f"{stage} {duration(time)}" for stage, time in seconds.items() if time]
    return (
        f"time on {manifest.world_size} {name} ({training.precision}, {UTILISATION:.0%} of {peak / 1e12:,.0f} TFLOP/s):"
        f" about {duration(sum(seconds.values()))} ({', '.join(parts)})"
    )


def _storage(manifest: DMDDistillation, architecture: "Architecture", sizes: "Sizes") -> list[str]:
    spec = manifest.spec
    lines = []
    if spec.method.regression is not None:
        channels, height, width = architecture.sample_shape
        pairs = 2 * spec.method.regression.pairs * channels * height * width * FLOAT_BYTES
        lines.append(f"pairs: {spec.method.regression.pairs:,}, {_size(pairs)} in storage")
    # Generator, EMA and fake score, and two moments of what is trained.
    numbers = 2 * (sizes.network + sizes.adapters) + sizes.fake_score + 2 * (sizes.generator + sizes.fake_score)
    lines.append(
        f"checkpoints: {_size(numbers * FLOAT_BYTES)} each, {spec.training.keep_checkpoints} kept; "
        f"generator: {_size(sizes.network * FLOAT_BYTES)}"
    )
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
