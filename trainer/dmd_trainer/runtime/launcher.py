"""Starts a stage's processes through torchrun's elastic API, and turns their ends into one result.

`python -m dmd_trainer STAGE` is this launcher: one a node. It starts the workers (`worker.py`), one a process, waits,
and ends with one of `dmd_api.exit_codes`, leaving the stage's result or error as the termination message.
"""

import ctypes
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dmd_api import runtime
from dmd_api.causes import root_cause
from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import StageError, StageResult
from dmd_api.stages import SHUTDOWN_SECONDS, Stage
from dmd_trainer.runtime.certificates import trust_bundle

RESULTS = "DMD_RESULTS"
"""The folder in which each worker leaves its `rank-N.json`, a `StageResult`."""
PR_SET_PDEATHSIG = 1


def main(stage: Stage) -> ExitCode:
    """Runs `stage` on this node; everything else comes from the environment, see `dmd_api.runtime`."""
    signal.signal(signal.SIGTERM, _exit_interrupted)
    if os.environ.get(runtime.END_WITH_PARENT) == "1":
        end_with_parent()
    with tempfile.TemporaryDirectory(prefix="dmd-results-") as folder:
        os.environ[RESULTS] = folder
        try:
            trust_bundle(Path(folder))
        except BadInputError as error:
            result = StageResult(
                stage=stage, error=StageError(reason=error.reason, message=error.message, exit_code=error.exit_code)
            )
        else:
            result = _launch(stage, Path(folder))
    _write_termination_message(result)
    if result.error is not None:
        print(f"{stage}: {result.error.reason}: {result.error.message}", file=sys.stderr, flush=True)
        return ExitCode(result.error.exit_code)
    return ExitCode.GATES_FAILED if result.result.get("gatesFailed") else ExitCode.DONE


def end_with_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent dies (Linux; elsewhere nothing), so that no stage outlives it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit_interrupted(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.INTERRUPTED)


def _launch(stage: Stage, results: Path) -> StageResult:
    nodes = int(os.environ.get(runtime.NODES, "1"))
    node_rank = int(os.environ.get(runtime.NODE_RANK) or os.environ.get(runtime.COMPLETION_INDEX, "0"))
    alone = not stage.meets(nodes)
    timeout = int(os.environ.get(runtime.RENDEZVOUS_TIMEOUT, "900"))
    config = LaunchConfig(
        min_nodes=1 if alone else nodes,
        max_nodes=1 if alone else nodes,
        nproc_per_node=int(os.environ.get(runtime.PROCESSES_PER_NODE, "1")),
        run_id=f"{os.environ.get(runtime.RUN_KEY, 'run')}-{stage}-{os.environ.get(runtime.ATTEMPT, '1')}",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else os.environ[runtime.RENDEZVOUS],
        rdzv_configs={"timeout": timeout} if alone else {"timeout": timeout, "rank": node_rank},
        max_restarts=0,
        shutdown_timeout=int(os.environ.get(runtime.SHUTDOWN_TIMEOUT, str(SHUTDOWN_SECONDS))),
    )
    started = time.monotonic()
    try:
        elastic_launch(config, sys.executable)("-m", "dmd_trainer.runtime.worker", str(stage))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return root_cause(_read_results(results)) or _from_exit_code(stage, rank, failure.exitcode)
    except SignalException:
        return root_cause(_read_results(results)) or StageResult(
            stage=stage,
            error=StageError(
                reason="Interrupted",
                message="interrupted before the work began; the next run goes on",
                exit_code=ExitCode.INTERRUPTED,
            ),
        )
    except DistError as error:
        # The agents' own store: what its end means shows in when it ended.
        waited = time.monotonic() - started >= timeout
        return root_cause(_read_results(results)) or _without_peers(stage, nodes, timeout if waited else None, error)
    return _read_results(results)[0]


def _without_peers(stage: Stage, nodes: int, timeout: int | None, error: DistError) -> StageResult:
    """For an agent that waited for the others in vain, `timeout` seconds, or that lost them (None)."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if timeout is None:
        reason, message = runtime.PEER_LOST, f"another worker is gone; the next attempt goes on ({said})"
    else:
        reason = "RendezvousTimeout"
        message = f"the {nodes} workers did not come together within {timeout} s: do all their pods run? ({said})"
    return StageResult(stage=stage, error=StageError(reason=reason, message=message, exit_code=ExitCode.INFRASTRUCTURE))


def _read_results(folder: Path) -> list[StageResult]:
    """The workers' results, that of the lowest rank first."""
    files = sorted(folder.glob("rank-*.json"))
    return [StageResult.model_validate_json(file.read_text()) for file in files]


def _from_exit_code(stage: Stage, rank: int, code: int) -> StageResult:
    """For a worker that ended without a word: killed, most often by the kernel for want of memory."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = "; SIGKILL usually means that memory ran out: lower spec.training.microBatchSize" if code == -9 else ""
    message = f"worker {rank} {how} without a word{hint}; its log above may say why"
    return StageResult(
        stage=stage, error=StageError(reason="WorkerLost", message=message, exit_code=ExitCode.UNEXPECTED)
    )


def _write_termination_message(result: StageResult) -> None:
    path = Path(os.environ.get(runtime.TERMINATION_LOG, "/dev/termination-log"))
    if path.exists() or runtime.TERMINATION_LOG in os.environ:
        path.write_text(result.to_termination_message())
