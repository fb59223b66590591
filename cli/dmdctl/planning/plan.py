"""`dmdctl plan`: the objects, evaluations, memory, time and storage of a run, before anything is created."""

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dmd_api.manifest import DMDDistillation, manifest_hash
from dmd_api.stages import Stage, stages
from dmd_trainer.planning.gpus import find_gpu
from dmd_trainer.planning.teacher import architecture_of, at_hand
from dmd_trainer.planning.work import Work, count_work
from dmdctl.console import Console
from dmdctl.display import duration
from dmdctl.manifest_file import read_manifest
from dmdctl.model.generator import REGISTERED, registry_uri
from dmdctl.planning.gpu_plan import show_gpu_plan
from dmdctl.verbosity import quiet_libraries, quiet_warnings

if TYPE_CHECKING:
    from dmd_trainer.diffusion.denoiser import Condition
    from dmd_trainer.families.teacher import Teacher


@dataclass(frozen=True)
class Probe:
    """Times of the teacher on this machine.

    Attributes:
        forward: seconds a sample for a pass without gradients on one process.
        backward: seconds a sample for a pass with them.
        classification: a pass as far as the GAN's head, as a share of a whole one.
    """

    forward: float
    backward: float
    classification: float


def show_plan(file: Path, probe: bool | None, gpu: str, gpu_memory: int) -> None:
    """Prints the plan; creates nothing.

    Args:
        file: the manifest.
        probe: whether to time the teacher here; None does where it is on this machine.
        gpu: the GPU's name.
        gpu_memory: GB (10^9 bytes) that one of them has.

    Raises:
        ManifestError: the manifest is wrong.
        BadInputError: the teacher cannot be loaded for the probe, or the GPU or architecture is not known.
    """
    manifest = read_manifest(file)
    find_gpu(gpu)  # before the work
    _find_registry(manifest)
    architecture = architecture_of(manifest)
    console = Console()
    console.print_line((manifest.metadata.name, "bold"), f"  manifest {manifest_hash(manifest)}")
    console.print()
    console.print(_objects(manifest))
    work = count_work(manifest, architecture.scheduler if architecture else None)
    trainer = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))
    quiet_warnings()
    if probe is None:
        probe = trainer and at_hand(manifest)
    found = _probe_teacher(manifest) if probe else None
    console.print(_work_table(manifest, work, found))
    if trainer:
        show_gpu_plan(console, manifest, architecture, work, gpu, gpu_memory)
    else:
        console.print_line("memory and time on GPUs: need the trainer; pip install 'dmd-operator[trainer]'")


def _objects(manifest: DMDDistillation) -> Table:
    """The table of what the operator creates for each attempt at a stage.

    An Indexed Job, and a headless Service of the same name where its pods have to meet.
    """
    table = Table(title="Kubernetes objects", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in ("Job", "pods", "processes a pod", ""):
        table.add_column(column)
    for stage in stages(manifest):
        size = stage.size(manifest.spec)
        meets = "and a Service" if stage.meets(size.nodes) else ""
        table.add_row(f"{manifest.metadata.name}-{stage}-1", str(size.nodes), str(size.processes_per_node), meets)
    return table


def _find_registry(manifest: DMDDistillation) -> None:
    """Where the teacher is a registered model, lets it be found where `dmdctl sample` would find it."""
    teacher, tracking = manifest.spec.teacher.uri, manifest.spec.tracking.uri
    if teacher.startswith(REGISTERED):
        from dmd_trainer.runtime.registry import use_registry

        use_registry(registry_uri(teacher, tracking))


def _probe_teacher(manifest: DMDDistillation) -> Probe:
    import torch

    from dmd_trainer.families.architecture import read_architecture
    from dmd_trainer.families.teacher import load_teacher
    from dmd_trainer.planning.measured import count_flops
    from dmd_trainer.runtime.fetch import local_path

    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch, Console().spinner("timing the teacher"):
        folder = local_path(manifest.spec.teacher.uri, Path(scratch))
        teacher, architecture = load_teacher(folder), read_architecture(folder)
        batch = min(64, manifest.spec.training.batch_size // manifest.world_size)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each of the processes that share this machine will have
        try:
            condition = architecture.conditions(batch)
            forward, backward = _time_passes(teacher, condition, batch)
        finally:
            torch.set_num_threads(threads)
        operations = count_flops(architecture)
        return Probe(forward, backward, operations.classification / operations.network)


def _time_passes(teacher: "Teacher", condition: "Condition", batch: int) -> tuple[float, float]:
    """Seconds a sample of a pass without and with gradients: the best of three."""
    import torch

    x = torch.randn(batch, *teacher.sample_shape)
    level = teacher.denoiser.schedule.at(torch.full((batch,), len(teacher.denoiser.schedule) // 2))

    def forward() -> None:
        with torch.no_grad():
            teacher.denoiser(x, level, condition)

    def backward() -> None:
        teacher.denoiser(x, level, condition).square().mean().backward()

    seconds = []
    for action in (forward, backward):
        teacher.denoiser.network.requires_grad_(action is backward)
        action()
        times = []
        for _ in range(3):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        seconds.append(min(times) / batch)
    return seconds[0], seconds[1]


def _work_table(manifest: DMDDistillation, work: Work, probe: Probe | None) -> Table:
    import os

    table = Table(title="\nWork", title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("network evaluations", justify="right")
    table.add_column("with gradients", justify="right")
    table.add_column("time on this machine", justify="right")
    parallel = min(manifest.world_size, os.cpu_count() or 1)
    total = 0.0
    for stage in (Stage.PREPARE, Stage.DISTILL, Stage.EVALUATE):
        forward, backward = work.forward.get(stage, 0.0), work.backward.get(stage, 0.0)
        classified, classified_backward = work.classified.get(stage, 0.0), work.classified_backward.get(stage, 0.0)
        estimate = ""
        if probe is not None:
            seconds = (
                (forward + probe.classification * classified) * probe.forward
                + (backward + probe.classification * classified_backward) * probe.backward
            ) / parallel
            total += seconds
            estimate = f"about {duration(seconds)}"
        forward, backward = forward + classified, backward + classified_backward
        table.add_row(str(stage), f"{forward:,.0f}", f"{backward:,.0f}" if backward else "", estimate)
    if probe is not None:
        table.add_row("all", "", "", f"about {duration(total)}", style="bold")
    return table
