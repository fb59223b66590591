"""The manifest, a `DMDDistillation`: its metadata, its `spec` under all rules, and its hash."""

import hashlib
import json
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from dmd_api.rules import NAME_PATTERN, check
from dmd_api.spec import Method, Model, Spec

API_VERSION = "dmd-operator.io/v1alpha1"
KIND = "DMDDistillation"


class Metadata(Model):
    """The resource's metadata; fields that the API server adds are kept."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=NAME_PATTERN,
        description="The resource's name: lower-case letters, digits and '-'.",
    )
    namespace: str | None = Field(None, max_length=63, description="The namespace.")
    labels: dict[str, str] = Field(default_factory=dict, description="The resource's labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="The resource's annotations.")


class DMDDistillation(Model):
    """A distillation: one diffusion model, one recipe, one generator in the model registry."""

    api_version: Literal["dmd-operator.io/v1alpha1"] = Field(description="The API's version.")
    kind: Literal["DMDDistillation"] = Field(description="The resource's kind.")
    metadata: Metadata = Field(description="The resource's metadata.")
    spec: Spec = Field(description="The distillation that is wanted.")

    @model_validator(mode="after")
    def _keep_the_rules(self) -> Self:
        check(self.metadata.name, self.spec)
        return self

    @property
    def world_size(self) -> int:
        """The number of processes that distil."""
        return self.spec.workers.nodes * self.spec.workers.processes_per_node

    @property
    def registered_model(self) -> str:
        """The model's name in the registry."""
        return self.spec.tracking.registered_model or self.metadata.name


LATER = ("divergence", "guidance_noise", "matching_noise")
"""Fields of `method` that are younger than stored runs: they do not count at their defaults, so that runs are found."""


def manifest_hash(manifest: DMDDistillation) -> str:
    """Twelve hexadecimal digits of the SHA-256 of what decides a run's result.

    Where the run's processes are, how often it may fail and where it reports to do not change it; the number of
    processes does not either, since every draw is keyed by the global sample index.
    """
    method = manifest.spec.method
    spec = manifest.spec.model_dump(
        mode="json",
        by_alias=True,
        include={"teacher", "data", "method", "training", "evaluation"},
        exclude={
            "evaluation": {"resources", "pod_template", "batch_size"},
            "teacher": {"offload"},
            "method": {name for name in LATER if getattr(method, name) == Method.model_fields[name].default},
            "training": {
                "sharding",
                "micro_batch_size",
                "activation_checkpointing",
                "compile",
                "channels_last",
                "stop_on_collapse",
                "checkpoint_every",
                "keep_checkpoints",
            },
        },
    )
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
