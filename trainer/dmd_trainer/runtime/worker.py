"""One process of a stage, started by the launcher: makes the context, runs the stage, says how it ended."""

import logging
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dmd_api import runtime
from dmd_api.errors import DMDError
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import parse_manifest
from dmd_api.runtime import StageError, StageResult
from dmd_api.stages import Stage
from dmd_api.text import LogFormatter
from dmd_trainer.distributed.collectives import local_rank, start_process_group
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.finished import read_result, write_result
from dmd_trainer.runtime.launcher import RESULTS, end_with_parent
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer
from dmd_trainer.runtime.registry import use_registry
from dmd_trainer.runtime.storage import open_storage

LOST_PEER = ("connection closed by peer", "connection reset", "connection refused", "timed out", "gloo", "nccl")
"""What PyTorch's collectives say, in plain RuntimeErrors, when another rank is gone."""


def main() -> ExitCode:
    """Runs this worker's part of the stage named on the command line."""
    stage = Stage(sys.argv[1])
    # Whatever a library asks of torch.load: weights come from elsewhere, and no pickle of theirs is run.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    log = logging.StreamHandler()
    log.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    if os.environ.get(runtime.DEBUG) == "1":
        logging.getLogger("dmd_trainer").setLevel(logging.DEBUG)
    end_with_parent()
    rank = _rank(stage)
    result = StageResult(stage=stage)
    try:
        result.result = _run(stage, rank)
    except DMDError as error:
        result.error = StageError(reason=error.reason, message=error.message, exit_code=error.exit_code)
    except Exception as error:  # whatever it is, the run's owner should read it without reading logs
        logging.getLogger(__name__).exception("%s failed", stage)
        result.error = _unforeseen(error)
    Path(os.environ[RESULTS], f"rank-{rank:05d}.json").write_text(result.model_dump_json())
    return ExitCode(result.error.exit_code) if result.error else ExitCode.DONE


def _run(stage: Stage, rank: int) -> dict[str, Any]:
    manifest = parse_manifest(_json(os.environ[runtime.MANIFEST]))
    assert manifest.spec.tracking.uri is not None, "whoever starts a stage resolves the defaults"
    use_registry(manifest.spec.tracking.uri)
    attempt = int(os.environ.get(runtime.ATTEMPT, "1"))
    run_key = os.environ[runtime.RUN_KEY]
    storage = manifest.spec.storage
    assert storage is not None, "whoever starts a stage resolves the defaults"
    shared = open_storage(storage.uri, endpoint_url=storage.endpoint_url)
    scratch = Path(os.environ.get(runtime.SCRATCH) or tempfile.mkdtemp(prefix="dmd-"))
    scratch.mkdir(parents=True, exist_ok=True)
    board = ProgressBoard(stage, attempt)
    device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = StageContext(
        stage=stage,
        manifest=manifest,
        run_key=run_key,
        attempt=attempt,
        storage=shared.sub(run_key),
        shared_storage=shared,
        rank=rank,
        world_size=_world_size(stage),
        device=device,
        scratch=scratch,
        progress=board,
    )
    # A stage whose end nobody saw is not done again. Where workers are alone, none knows whether all have ended.
    if stage.collective and (done := read_result(context.storage, stage, manifest)) is not None:
        return done.result
    context.stop_at_signals()
    address = os.environ.get(runtime.PROGRESS_ADDRESS, "") if rank == 0 else ""
    with ProgressServer(board, address):
        board.update(activity="importing libraries")
        module = import_module(f"dmd_trainer.stages.{stage}")
        if stage.collective:
            if context.world_size > 1:
                board.update(activity="waiting for the other workers")
            start_process_group(device)
        try:
            if rank == 0 and stage.tracked:
                from dmd_trainer.tracking.client import TrackedRun
                from dmd_trainer.tracking.tracker import Tracker

                run = TrackedRun.of(manifest, run_key)
                with Tracker(run, scratch / "tracking", context.storage, board.message) as context.tracker:
                    context.tracker.log_manifest(manifest, device, context.world_size)
                    result: dict[str, Any] = module.run(context)
                    board.update(activity="sending the last records to MLflow")
            else:
                result = module.run(context)
        finally:
            # Without this a rank that fails waits in NCCL's own shutdown; gloo's peers notice either way.
            if dist.is_initialized() and sys.exc_info()[0] is None:
                dist.destroy_process_group()
    if stage.collective and rank == 0:
        write_result(context.storage, StageResult(stage=stage, result=result))
    return result


def _json(text: str) -> object:
    import json

    return json.loads(text)


def _rank(stage: Stage) -> int:
    """The worker's global number; stages without collectives count it themselves, since their agents are alone."""
    if stage.collective:
        return int(os.environ["RANK"])
    node = int(os.environ.get(runtime.NODE_RANK) or os.environ.get(runtime.COMPLETION_INDEX, "0"))
    return node * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + local_rank()


def _world_size(stage: Stage) -> int:
    if stage.collective:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get(runtime.NODES, "1")) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _unforeseen(error: Exception) -> StageError:
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if isinstance(error, torch.OutOfMemoryError):
        return StageError(
            reason="OutOfMemory",
            message=f"the device's memory ran out; lower spec.training.microBatchSize ({text})",
            exit_code=ExitCode.BAD_INPUT,
        )
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST_PEER):
        return StageError(
            reason=runtime.PEER_LOST,
            message=f"another worker is gone; the next attempt goes on from the last checkpoint ({text})",
            exit_code=ExitCode.INFRASTRUCTURE,
        )
    return StageError(reason="Unexpected", message=text, exit_code=ExitCode.UNEXPECTED)


if __name__ == "__main__":
    sys.exit(main())
