"""The API of dmd-operator: the `DMDDistillation` manifest and what the trainer, the operator and the CLI agree on."""

__version__ = "0.1.0"
