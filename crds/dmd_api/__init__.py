"""The API: the `DMDDistillation`, and what trainer, operator and CLI agree on."""

__version__ = "0.1.0"
