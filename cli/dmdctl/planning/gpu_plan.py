"""A plan's lines about GPUs: memory, the settings that make one enough, time and storage."""

from dataclasses import fields

from rich.table import Table

from dmd_api.manifest import DMDDistillation
from dmd_trainer.families.architecture import KNOWN, Architecture
from dmd_trainer.planning.fitting import enough_settings
from dmd_trainer.planning.gpus import UTILISATION, Flops, find_gpu, stage_seconds
from dmd_trainer.planning.measured import count_flops
from dmd_trainer.planning.memory import MemoryEstimate, count_sizes, estimate_memory
from dmd_trainer.planning.shape import step_shape
from dmd_trainer.planning.stored import Stored, count_stored
from dmd_trainer.planning.teacher import ANNOTATION
from dmd_trainer.planning.work import Work
from dmdctl.console import Console
from dmdctl.display import duration

GIGABYTE = 10**9
MEMORY_SIZES = (16, 24, 40, 48, 80, 141)
"""Of GPUs, in GB of 10^9 bytes. What cards have above their name is left to the driver and to fragmentation."""
PARTS = {
    "trained": "generator and fake score",
    "gradients": "their gradients",
    "optimizer": "Adam's moments",
    "ema": "EMA",
    "frozen": "frozen networks",
    "gathered": "gathered shards",
    "activations": "activations of {} samples",
}


def show_gpu_plan(
    console: Console,
    manifest: DMDDistillation,
    architecture: Architecture | None,
    work: Work,
    gpu: str,
    gpu_memory: int,
) -> None:
    """Prints the memory of one GPU, the settings that make it enough, the time on all of them, and the storage.

    Raises:
        BadInputError: the GPU is not known.
    """
    if architecture is None:
        console.print_line(
            f"memory and time on GPUs: the teacher's architecture is not known; name it in metadata.annotations: "
            f"{ANNOTATION}: {' | '.join(KNOWN)}"
        )
        return
    with console.status("running a step without data"):
        estimate = estimate_memory(manifest, architecture)
    sharded = ", sharded" if manifest.spec.training.sharding == "FSDP" else ""
    console.print()
    console.print_line(f"Memory of each GPU ({architecture.name}, {manifest.world_size} GPUs{sharded})", style="italic")
    console.print(_memory_table(estimate, step_shape(manifest).micro_batch))
    console.print(_enough(estimate.total))
    if estimate.total > gpu_memory * GIGABYTE:
        with console.status("looking for settings that need less"):
            console.print(_advice(manifest, architecture, gpu_memory))
    console.print()
    console.print(_time(manifest, work, count_flops(architecture), gpu))
    stored = count_stored(manifest, architecture, count_sizes(manifest, architecture))
    for line in _storage(manifest, stored):
        console.print(line)


def _memory_table(estimate: MemoryEstimate, micro_batch: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    table.add_column("memory", justify="right")
    for part in fields(estimate):
        if size := getattr(estimate, part.name):
            table.add_row(PARTS[part.name].format(micro_batch), _size(size))
    table.add_row("at the peak", _size(estimate.total), style="bold")
    return table


def _enough(total: int) -> str:
    sizes = [size for size in MEMORY_SIZES if size * GIGABYTE >= total]
    return f"enough: GPUs of {', '.join(map(str, sizes))} GB" if sizes else "enough: no single GPU of today"


def _advice(manifest: DMDDistillation, architecture: Architecture, gpu_memory: int) -> str:
    settings, estimate, _ = enough_settings(manifest, architecture, gpu_memory * GIGABYTE)
    changes = "".join(f"\n  {setting}" for setting in settings)
    if estimate.total <= gpu_memory * GIGABYTE:
        return f"{gpu_memory} GB are enough with ({_size(estimate.total)}):{changes}"
    return (
        f"{gpu_memory} GB are not enough; with these it is {_size(estimate.total)}, "
        f"and more processes would share the rest:{changes}"
    )


def _time(manifest: DMDDistillation, work: Work, flops: Flops, name: str) -> str:
    gpu, precision = find_gpu(name), manifest.spec.training.precision
    seconds = stage_seconds(manifest, work, flops, gpu)
    parts = [f"{stage} {duration(time)}" for stage, time in seconds.items() if time]
    return (
        f"time on {manifest.world_size} {name} ({precision}, {UTILISATION:.0%} of {gpu.peak(precision) / 1e12:,.0f} "
        f"TFLOP/s): about {duration(sum(seconds.values()))} ({', '.join(parts)})"
    )


def _storage(manifest: DMDDistillation, stored: Stored) -> list[str]:
    lines = []
    if (regression := manifest.spec.method.regression) is not None:
        lines.append(f"pairs: {regression.pairs:,}, {_size(stored.pairs)} in storage")
    lines.append(
        f"checkpoints: {_size(stored.checkpoint)} each, {manifest.spec.training.keep_checkpoints} kept; "
        f"generator: {_size(stored.generator)}"
    )
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
