"""The training loop and what survives of it."""
