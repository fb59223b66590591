"""`dmdctl plan`: what a run would create, compute and store, and about how long it would take here."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dmd_api.loading import load_manifest
from dmd_api.manifest import DMDDistillation, manifest_hash
from dmd_api.runtime import Stage
from dmd_operator.decide import stages
from dmd_operator.pods import nodes
from dmdctl.bars import duration

if TYPE_CHECKING:
    from dmd_trainer.teachers import Teacher

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Network evaluations of a run, each of one sample.

    Attributes:
        forward: without gradients, by stage.
        backward: forward and backward passes, by stage.
    """

    forward: dict[Stage, float]
    backward: dict[Stage, float]


@dataclass(frozen=True)
class Probe:
    """What a look at the teacher found.

    Attributes:
        forward: seconds a sample for a pass without gradients on one process.
        backward: seconds a sample for a pass with them.
        numbers: how many numbers a sample has.
        parameters: the network's.
    """

    forward: float
    backward: float
    numbers: int
    parameters: int


def show_plan(file: Path, probe: bool) -> None:
    """Prints the plan; creates nothing.

    Raises:
        ManifestError: the manifest is wrong.
        BadInputError: the teacher cannot be loaded for the probe.
    """
    manifest = load_manifest(file)
    console = Console()
    console.print(f"[bold]{manifest.metadata.name}[/bold]  manifest {manifest_hash(manifest)}", highlight=False)
    console.print()
    console.print(_objects(manifest))
    work = count_work(manifest)
    found = _probe_teacher(manifest) if probe else None
    console.print(_work_table(manifest, work, found))
    console.print()
    regression = manifest.spec.method.regression
    if found is not None:
        if regression is not None:
            size = 2 * regression.pairs * found.numbers * FLOAT_BYTES
            console.print(f"pairs: {regression.pairs:,}, {_bytes(size)} in storage", highlight=False)
        # Three networks and two moments for each of the two that are trained.
        checkpoint = 7 * found.parameters * FLOAT_BYTES
        console.print(
            f"checkpoints: {_bytes(checkpoint)} each, {manifest.spec.training.keep_checkpoints} kept", highlight=False
        )
    elif regression is not None:
        console.print(f"pairs: {regression.pairs:,} (their size follows from the teacher: --probe)", highlight=False)


def count_work(manifest: DMDDistillation) -> Work:
    """Network evaluations by stage, from the manifest alone."""
    spec = manifest.spec
    training, method, evaluation = spec.training, spec.method, spec.evaluation
    guided = 2 if spec.teacher.guidance_scale != 1 else 1
    regression = method.regression
    solver, steps = (regression.solver, regression.solver_steps) if regression else ("Heun", 18)
    solution = guided * (2 * steps - 1 if solver == "Heun" else steps)
    updates = training.generator_updates * training.batch_size
    extra_fake = method.fake_score_updates - 1
    measurements = training.generator_updates // evaluation.every + 2
    forward = {
        Stage.PREPARE: float(solution * regression.pairs) if regression else 0.0,
        # Teacher and fake score at x_t, and the generator for each further fake-score update.
        Stage.DISTILL: float(updates * (guided + 1 + extra_fake) + measurements * evaluation.samples),
        Stage.EVALUATE: float(evaluation.samples * (solution + 2)),
    }
    backward = {Stage.DISTILL: float(updates * (1 + (regression is not None) + method.fake_score_updates))}
    return Work(forward, backward)


def _objects(manifest: DMDDistillation) -> Table:
    """What the operator creates for it: an Indexed Job and a headless Service for each attempt at a stage."""
    name, per_node = manifest.metadata.name, manifest.spec.workers.processes_per_node
    table = Table(title="Kubernetes objects", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in ("Job and Service", "pods", "processes a pod"):
        table.add_column(column)
    for stage in stages(manifest):
        alone = stage in {Stage.PREFLIGHT, Stage.PREPARE}
        table.add_row(f"{name}-{stage}-1", str(nodes(manifest, stage)), "1" if alone else str(per_node))
    return table


def _probe_teacher(manifest: DMDDistillation) -> Probe:
    import torch

    from dmd_trainer.fetch import local_path
    from dmd_trainer.teachers import load_teacher

    with tempfile.TemporaryDirectory() as scratch, Console().status("timing the teacher"):
        teacher = load_teacher(local_path(manifest.spec.teacher.uri, Path(scratch)))
        batch = min(64, manifest.spec.training.batch_size // manifest.world_size)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each of the processes that share this machine will have
        try:
            forward, backward = _time_passes(teacher, batch)
        finally:
            torch.set_num_threads(threads)
        return Probe(
            forward,
            backward,
            numbers=int(torch.tensor(teacher.sample_shape).prod()),
            parameters=sum(p.numel() for p in teacher.denoiser.network.parameters()),
        )


def _time_passes(teacher: "Teacher", batch: int) -> tuple[float, float]:
    """Seconds a sample of a pass without and with gradients: the best of three."""
    import torch

    x = torch.randn(batch, *teacher.sample_shape)
    level = teacher.denoiser.schedule.at(torch.full((batch,), len(teacher.denoiser.schedule) // 2))
    labels = {} if teacher.num_class_embeds is None else {"class_labels": torch.zeros(batch, dtype=torch.int64)}

    def forward() -> None:
        with torch.no_grad():
            teacher.denoiser(x, level, labels)

    def backward() -> None:
        teacher.denoiser(x, level, labels).square().mean().backward()

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
        estimate = ""
        if probe is not None:
            seconds = (forward * probe.forward + backward * probe.backward) / parallel
            total += seconds
            estimate = f"about {duration(seconds)}"
        table.add_row(str(stage), f"{forward:,.0f}", f"{backward:,.0f}" if backward else "", estimate)
    if probe is not None:
        table.add_row("[bold]all", "", "", f"[bold]about {duration(total)}")
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
