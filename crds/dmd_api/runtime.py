"""The contract between whoever starts a stage (a pod, torchx on a laptop) and the trainer.

A stage is one command, `python -m dmd_trainer STAGE`; the environment variables below say everything else.
"""

import json
import os
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, OnErrorOmit, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo, ValidatorFunctionWrapHandler

from dmd_api.stages import Stage

MANIFEST = "DMD_MANIFEST"
"""The whole manifest as JSON, with every default resolved."""
RUN_KEY = "DMD_RUN_KEY"
"""The run's key in storage below `storage.uri`: `NAME-HASH` locally, `NAME-UID` in a cluster."""
ATTEMPT = "DMD_ATTEMPT"
"""The number of this attempt at the stage, from 1; a checkpoint's path carries it."""
NODES = "DMD_NODES"
"""The number of torchrun agents of the stage."""
NODE_RANK = "DMD_NODE_RANK"
"""The number of this agent, from 0; in an Indexed Job `JOB_COMPLETION_INDEX` says it."""
PROCESSES_PER_NODE = "DMD_PROCESSES_PER_NODE"
"""The number of ranks that each agent starts."""
RENDEZVOUS = "DMD_RENDEZVOUS"
"""`host:port` of agent 0, where the agents of a stage meet."""
PROGRESS_ADDRESS = "DMD_PROGRESS_ADDRESS"
"""`host:port` on which rank 0 serves `/progress` and `/metrics`; unset: it serves nothing."""
SCRATCH = "DMD_SCRATCH"
"""A local folder for what may be lost with the process: caches, staged uploads. Default: a temporary folder."""
CA_BUNDLE = "DMD_CA_BUNDLE"
"""A file of certificates in PEM that the stage trusts in addition to the public ones; unset: it trusts these alone."""
TERMINATION_LOG = "DMD_TERMINATION_LOG"
"""The file that receives the stage's result or error as JSON, at most 4 KiB. Default: /dev/termination-log."""

RENDEZVOUS_TIMEOUT = "DMD_RENDEZVOUS_TIMEOUT"
"""Seconds that agents wait for each other: the others may come while index 0 still pulls its image. Default: 900."""
SHUTDOWN_TIMEOUT = "DMD_SHUTDOWN_TIMEOUT"
"""Seconds that workers get between SIGTERM and SIGKILL, enough for a checkpoint. Default: 120."""
END_WITH_PARENT = "DMD_END_WITH_PARENT"
"""`1`: a stage is sent SIGTERM by the kernel when the process that started it dies (Linux), as `dmdctl run` wants."""
DEBUG = "DMD_DEBUG"
"""`1`: the trainer logs what it does in detail, as `dmdctl run -vv` wants."""

COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
"""A pod's number, which Kubernetes sets in the pods of an Indexed Job alone."""

CLAIMS = "/var/run/dmd/claims"
"""Holds the PersistentVolumeClaims that `pvc://CLAIM/PATH` names in a pod, each in a folder of its name."""
CA_BUNDLE_FILE = "/var/run/dmd/ca/ca.crt"
"""What `spec.caBundle` names, in a pod."""
PEER_LOST = "PeerLost"
"""The reason of a worker whose peer is gone: a consequence, never the cause of an attempt's end."""
CUT = " [cut]"
TERMINATION_MESSAGE_BYTES = 4096
"""The part of a container's termination message that Kubernetes keeps."""


def in_a_pod() -> bool:
    """True in a pod of a Job."""
    return COMPLETION_INDEX in os.environ


def _printable(text: str) -> str:
    """Refuses control characters, those that turn the direction of text, and halves of pairs."""
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


Count = Annotated[int, Field(ge=0, lt=2**63)]
Quantity = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Line = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
Value = Annotated[str, Field(max_length=1024)] | Annotated[int, Field(gt=-(2**63), lt=2**63)] | float | bool | None
Measures = dict[OnErrorOmit[Line], OnErrorOmit[float]]
"""Numbers by name; what is not finite is what was measured, and stays."""


class Progress(BaseModel):
    """The progress that rank 0 of a running stage serves as `/progress`; a newer trainer may add fields.

    Bounded, since it goes into the resource's status and comes from a pod that runs whatever its owner wants. A field
    out of its bounds is as one that is not there; without the stage and the attempt there is no progress.
    """

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="strings")  # JSON has no NaN, and null is no number

    stage: Stage
    activity: Line = ""
    """The present activity, in a word or two: `loading the teacher`, `training`, `evaluating step 500`."""
    step: Count = 0
    total: Count = 0
    unit: Line = ""
    """The unit of `step` and `total`: `generator updates`, `pairs`, `samples`, `checks`."""
    unchanged_seconds: Quantity | None = None
    """Seconds since `step` or `activity` last changed; None: unknown."""
    attempt: Count = 1
    eta_seconds: Quantity | None = None
    images_per_second: Quantity | None = None
    losses: Measures = Field(default_factory=dict, max_length=16)
    """The latest losses by name: `distribution_matching`, `regression`, `fake_score`."""
    health: Measures = Field(default_factory=dict, max_length=16)
    """The latest measures of a run's health by name: `fake_score_loss`, `diversity`, `saturation`, ..."""
    warnings: list[OnErrorOmit[Annotated[str, Field(max_length=1024), AfterValidator(_printable)]]] = Field(
        default_factory=list, max_length=16
    )
    """Problems of the training now: symptom, likely cause and the field to change; empty for a healthy run."""
    fid: Quantity | None = None
    """The latest Frechet distance of the generator's EMA, where one was measured."""
    best_fid: Quantity | None = None
    best_step: Count | None = None
    checkpoint_step: Count | None = None
    """The step that the next attempt resumes from; None before the first checkpoint."""
    mlflow_run: Line | None = None
    mlflow_run_url: Annotated[str, Field(max_length=2048), AfterValidator(_printable)] | None = None
    """The run's page, where the tracking server has one."""
    messages: list[OnErrorOmit[Annotated[str, Field(max_length=4096)]]] = Field(default_factory=list, max_length=20)
    """Lines for the user (a checkpoint skipped, a tracking server that is away), newest last."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _drop_alone(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError:
            field = cls.model_fields[str(info.field_name)]
            if info.field_name in {"stage", "attempt"}:
                raise
            return field.get_default(call_default_factory=True)

    @classmethod
    def from_answer(cls, body: bytes) -> Self:
        """The progress in an answer of `/progress`.

        Raises:
            ValueError: there is none in it.
        """
        try:
            # Whole numbers as floating-point ones: those of a million digits too take no time.
            return cls.model_validate(json.loads(body, parse_int=float))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class StageError(BaseModel):
    """The reason of a stage that ended without success."""

    reason: str
    """A word in CamelCase, as in conditions: `BadInput`, `TrainingDiverged`, `Interrupted`, `StorageUnavailable`."""
    message: str
    """The problem, its place and its remedy."""
    exit_code: int = 1


class StageResult(BaseModel):
    """A stage's last word: its termination message."""

    stage: Stage
    result: dict[OnErrorOmit[Line], OnErrorOmit[Value]] = Field(default_factory=dict)
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
