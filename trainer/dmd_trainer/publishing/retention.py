"""Deletes what a complete run need not keep, by `storage.retain`."""

from dmd_trainer.runtime.context import StageContext


def delete_what_is_not_retained(context: StageContext) -> None:
    """Deletes pairs and checkpoints that need not stay; until a run is complete, everything may be needed to go on."""
    storage = context.manifest.spec.storage
    assert storage is not None, "whoever starts a stage resolves the defaults"
    for prefix, retained in (("pairs/", storage.retain.pairs), ("checkpoints/", storage.retain.checkpoints)):
        if not retained:
            context.storage.delete(prefix)
