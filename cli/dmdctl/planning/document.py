"""A plan as one JSON document: `dmdctl plan --output json`."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from dmd_api.manifest import DMDDistillation, manifest_hash
from dmd_api.stages import Stage, stages
from dmd_trainer.families.architecture import Architecture
from dmd_trainer.planning.gpus import find_gpu, stage_seconds
from dmd_trainer.planning.measured import count_flops
from dmd_trainer.planning.memory import count_sizes, estimate_memory
from dmd_trainer.planning.stored import count_stored
from dmd_trainer.planning.teacher import architecture_of
from dmd_trainer.planning.work import Work, count_work
from dmdctl.manifest_file import read_manifest
from dmdctl.planning.gpu_plan import GIGABYTE
from dmdctl.verbosity import quiet_warnings


def print_plan(file: Path, gpu: str, gpu_memory: int) -> None:
    """Prints what a run would create, compute and store: bytes and seconds, null where they are not known.

    Args:
        file: the manifest.
        gpu: the GPU's name.
        gpu_memory: GB (10^9 bytes) that one of them has.

    Raises:
        ManifestError: the manifest is wrong.
        BadInputError: the GPU or the architecture is not known.
    """
    manifest = read_manifest(file)
    find_gpu(gpu)  # before the work
    architecture = architecture_of(manifest)
    quiet_warnings()
    work = count_work(manifest, architecture.scheduler if architecture else None)
    document: dict[str, Any] = {
        "name": manifest.metadata.name,
        "manifestHash": manifest_hash(manifest),
        "stages": [_stage(manifest, work, stage) for stage in stages(manifest)],
        "memory": None,
        "storage": None,
        "gpu": {"name": gpu, "count": manifest.world_size, "seconds": None},
    }
    if architecture is not None and all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        document |= _on_gpus(manifest, architecture, work, gpu, gpu_memory)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _stage(manifest: DMDDistillation, work: Work, stage: Stage) -> dict[str, Any]:
    size = stage.size(manifest.spec)
    kinds = ("forward", "backward", "classified", "classified_backward")
    evaluations = {to_camel(kind): getattr(work, kind).get(stage, 0.0) for kind in kinds}
    return {
        "stage": str(stage),
        "pods": size.nodes,
        "processesPerPod": size.processes_per_node,
        "networkEvaluations": {name: count for name, count in evaluations.items() if count},
    }


def _on_gpus(
    manifest: DMDDistillation, architecture: Architecture, work: Work, gpu: str, gpu_memory: int
) -> dict[str, Any]:
    estimate = estimate_memory(manifest, architecture)
    parts = {to_camel(field.name): getattr(estimate, field.name) for field in dataclasses.fields(estimate)}
    stored = count_stored(manifest, architecture, count_sizes(manifest, architecture))
    seconds = stage_seconds(manifest, work, count_flops(architecture), find_gpu(gpu))
    return {
        "memory": {"bytes": estimate.total, "parts": parts, "enough": estimate.total <= gpu_memory * GIGABYTE},
        "storage": {to_camel(field.name): getattr(stored, field.name) for field in dataclasses.fields(stored)},
        "gpu": {
            "name": gpu,
            "count": manifest.world_size,
            "seconds": {str(stage): round(time, 1) for stage, time in seconds.items()},
        },
    }
