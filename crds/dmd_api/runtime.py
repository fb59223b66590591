"""The contract between whoever starts a stage (torchx's local scheduler, a pod) and the trainer that runs it.

A stage is one command, `python -m dmd_trainer STAGE`, told everything else by the environment variables below.
"""

import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dmd_api.stages import Stage as Stage

MANIFEST = "DMD_MANIFEST"
"""The whole manifest as JSON, with every default resolved."""
RUN_KEY = "DMD_RUN_KEY"
"""What keys the run in storage below `storage.uri`: `NAME-HASH` locally, `NAME-UID` in a cluster."""
ATTEMPT = "DMD_ATTEMPT"
"""The number of this attempt at the stage, from 1; a checkpoint's path carries it."""
NODES = "DMD_NODES"
"""How many torchrun agents the stage has."""
NODE_RANK = "DMD_NODE_RANK"
"""Which of them this process is, from 0; in an Indexed Job `JOB_COMPLETION_INDEX` says it."""
PROCESSES_PER_NODE = "DMD_PROCESSES_PER_NODE"
"""How many ranks each agent starts."""
RENDEZVOUS = "DMD_RENDEZVOUS"
"""`host:port` of agent 0, where the agents of a stage meet."""
PROGRESS_ADDRESS = "DMD_PROGRESS_ADDRESS"
"""`host:port` on which rank 0 serves `/progress` and `/metrics`; unset: it serves nothing."""
SCRATCH = "DMD_SCRATCH"
"""A local folder for what may be lost with the process: caches, staged uploads. Default: a temporary folder."""
TERMINATION_LOG = "DMD_TERMINATION_LOG"
"""The file that receives the stage's result or error as JSON, at most 4 KiB. Default: /dev/termination-log."""

RENDEZVOUS_TIMEOUT = "DMD_RENDEZVOUS_TIMEOUT"
"""Seconds that agents wait for each other: the others may ask while index 0 still pulls its image. Default: 900."""
SHUTDOWN_TIMEOUT = "DMD_SHUTDOWN_TIMEOUT"
"""Seconds that workers get between SIGTERM and SIGKILL, enough for a checkpoint. Default: 120."""
END_WITH_PARENT = "DMD_END_WITH_PARENT"
"""`1`: a stage is sent SIGTERM by the kernel when the process that started it dies (Linux), as `dmdctl run` wants."""

COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
"""What an Indexed Job tells its pods, and nobody else."""

CLAIMS = "/var/run/dmd/claims"
"""Where a pod mounts the PersistentVolumeClaims that `pvc://CLAIM/PATH` names, each in a folder of its name."""
PEER_LOST = "PeerLost"
"""The reason of a worker whose peer is gone: a consequence, never the cause of an attempt's end."""
CUT = " [cut]"
TERMINATION_MESSAGE_BYTES = 4096
"""What Kubernetes keeps of a container's termination message."""


def in_a_pod() -> bool:
    """Whether this process is of a Job's pod."""
    return COMPLETION_INDEX in os.environ


Line = Annotated[str, Field(max_length=256)]


class Progress(BaseModel):
    """What rank 0 of a running stage serves as `/progress`; a newer trainer may say more.

    Bounded, since it goes into the resource's status and comes from a pod that runs what its owner wants.
    """

    model_config = ConfigDict(extra="ignore")

    stage: Stage
    activity: Line = ""
    """What is going on, in a word or two: `loading the teacher`, `training`, `evaluating step 500`."""
    step: int = 0
    total: int = 0
    unit: Line = ""
    """What `step` and `total` count: `generator updates`, `pairs`, `samples`, `checks`."""
    attempt: int = 1
    eta_seconds: float | None = None
    images_per_second: float | None = None
    losses: dict[str, float] = Field(default_factory=dict, max_length=16)
    """The latest losses by name: `distribution_matching`, `regression`, `fake_score`."""
    health: dict[str, float] = Field(default_factory=dict, max_length=16)
    """The latest measures of a run's health by name: `fake_score_loss`, `diversity`, `saturation`, ..."""
    warnings: list[Annotated[str, Field(max_length=1024)]] = Field(default_factory=list, max_length=16)
    """What is wrong with the training now: symptom, likely cause and the field to change; empty for a healthy run."""
    fid: float | None = None
    """The latest Frechet distance of the generator's EMA, where one was measured."""
    best_fid: float | None = None
    best_step: int | None = None
    checkpoint_step: int | None = None
    """The step that a next attempt goes on from; None before the first checkpoint."""
    mlflow_run: Line | None = None
    mlflow_run_url: Annotated[str, Field(max_length=2048)] | None = None
    """The run's page, where the tracking server has one."""
    messages: list[str] = Field(default_factory=list)
    """Lines a person should see (a checkpoint passed over, a tracking server that is away), newest last, at most 20."""


class StageError(BaseModel):
    """Why a stage ended without success."""

    reason: str
    """A word in CamelCase, as in conditions: `BadInput`, `TrainingDiverged`, `Interrupted`, `StorageUnavailable`."""
    message: str
    """What was wrong, where, and what to do."""
    exit_code: int = 1


class StageResult(BaseModel):
    """A stage's last word: its termination message."""

    stage: Stage
    result: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    error: StageError | None = None

    def to_termination_message(self) -> str:
        """The result as JSON of at most `TERMINATION_MESSAGE_BYTES` bytes; a longer error is cut, and says so."""
        shorter = self
        while len((text := shorter.model_dump_json(exclude_none=True)).encode()) > TERMINATION_MESSAGE_BYTES:
            # Characters take one to several bytes in JSON: what is left is cut until it fits.
            assert shorter.error is not None, "results are short"
            kept = shorter.error.message.removesuffix(CUT)[: len(shorter.error.message) * 3 // 4]
            error = shorter.error.model_copy(update={"message": kept + CUT})
            shorter = self.model_copy(update={"error": error, "result": {}})
        return text
