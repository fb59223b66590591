"""Reads the manifest that a run follows from its resource, and freezes its defaults."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dmd_api.defaults import Defaults, resolve_defaults
from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.status import RunStatus


def read_manifest(
    resource: Mapping[str, Any], status: RunStatus, defaults: Defaults
) -> tuple[DMDDistillation, RunStatus]:
    """The manifest with its defaults resolved, and the status that freezes them.

    A run keeps the defaults that it started with: its attempts belong together, whatever becomes of the operator's.

    Raises:
        BadInputError: the resource breaks the API's rules (one that an older CRD let pass), or neither it nor the
            operator says where to store or what to run.
    """
    if status.resolved is not None:
        try:
            defaults = Defaults.model_validate(status.resolved)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise BadInputError(
                f"the operator's default {where} that this run began with: {problem['msg']}; mend defaults.{where} in "
                "the operator's Helm values, and start the run again"
            ) from error
    metadata = resource["metadata"]
    manifest = parse_manifest(
        {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            # Only what trainers need: it goes into every pod's environment.
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": _labels(metadata)},
            "spec": resource["spec"],
        }
    )
    manifest = resolve_defaults(manifest, defaults)
    for field, value, chart in (
        ("spec.storage.uri", manifest.spec.storage, "defaults.storage.uri"),
        ("spec.tracking.uri", manifest.spec.tracking.uri, "defaults.tracking.uri"),
        ("spec.images.trainer", manifest.spec.images.trainer, "defaults.images.trainer"),
    ):
        if value is None:
            raise BadInputError(
                f"{field} is not set and the operator has no default for it: set it in a new resource, or "
                f"set {chart} in the operator's Helm values"
            )
    frozen = defaults.model_dump(mode="json", by_alias=True, exclude_none=True)
    return manifest, status.model_copy(update={"resolved": frozen})


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    return dict(metadata.get("labels") or {})
