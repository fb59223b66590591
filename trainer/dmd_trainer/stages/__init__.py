"""The stages of a distillation, one file each: `run(context)` does the stage's work and returns its result."""
