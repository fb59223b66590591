"""Defaults for what a cluster, or a laptop, has one answer for: storage and tracking."""

from dmd_api.manifest import DMDDistillation, Storage


def resolve_defaults(manifest: DMDDistillation, storage_uri: str, tracking_uri: str) -> DMDDistillation:
    """The manifest with storage and tracking filled in where it names none.

    Args:
        manifest: as the user wrote it.
        storage_uri: where runs go by default.
        tracking_uri: the MLflow server by default.
    """
    spec = manifest.spec
    storage = spec.storage or Storage(uri=storage_uri)
    tracking = spec.tracking.model_copy(update={"uri": spec.tracking.uri or tracking_uri})
    return manifest.model_copy(update={"spec": spec.model_copy(update={"storage": storage, "tracking": tracking})})
