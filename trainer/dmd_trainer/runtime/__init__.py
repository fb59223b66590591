"""The processes of a stage: launcher, workers, context, storage."""
