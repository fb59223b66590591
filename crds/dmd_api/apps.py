"""An attempt at a stage as a torchx `AppDef`: its command, environment and ports.

torchx's local scheduler runs it as it is; an operator takes the same command, environment and ports into a pod of its
own.
"""

from collections.abc import Mapping
from typing import Any

from torchx.specs import AppDef, Role, macros

from dmd_api import runtime
from dmd_api.manifest import DMDDistillation
from dmd_api.stages import Size, Stage

RENDEZVOUS_PORT = 29500
PROGRESS_PORT = 9400


def stage_app(
    manifest: DMDDistillation,
    stage: Stage,
    *,
    run_key: str,
    attempt: int,
    rendezvous: str,
    progress_address: str,
    python: str = "python",
    size: Size | None = None,
    environment: Mapping[str, str] | None = None,
) -> AppDef:
    """One attempt at a stage.

    Args:
        manifest: with its defaults resolved.
        stage: the stage.
        run_key: the run's key in storage.
        attempt: the attempt's number, from 1.
        rendezvous: `host:port` where the agents meet.
        progress_address: `host:port` on which rank 0 serves its progress.
        python: the interpreter.
        size: the agents and their processes. Default: as on one machine.
        environment: further variables.
    """
    size = size or stage.local_size(manifest.spec)
    role = Role(
        name=str(stage),
        image="",
        entrypoint=python,
        args=["-m", "dmd_trainer", str(stage)],
        env={
            runtime.MANIFEST: _for_trainers(manifest),
            runtime.RUN_KEY: run_key,
            runtime.ATTEMPT: str(attempt),
            runtime.NODES: str(size.nodes),
            runtime.NODE_RANK: macros.replica_id,
            runtime.PROCESSES_PER_NODE: str(size.processes_per_node),
            runtime.RENDEZVOUS: rendezvous,
            runtime.PROGRESS_ADDRESS: progress_address,
            **(environment or {}),
        },
        num_replicas=size.nodes,
        port_map={"rendezvous": RENDEZVOUS_PORT, "progress": PROGRESS_PORT},
    )
    return AppDef(name=f"{manifest.metadata.name}-{stage}-{attempt}", roles=[role])


def _for_trainers(manifest: DMDDistillation) -> str:
    """The manifest as JSON without what pods are made of: a variable of the environment has room for 128 KiB."""
    pods = {"pod_template", "resources"}
    exclude: Any = {"spec": {"metadata": True, "workers": pods, "pair_workers": pods, "evaluation": pods}}
    return manifest.model_dump_json(by_alias=True, exclude_none=True, exclude=exclude)
