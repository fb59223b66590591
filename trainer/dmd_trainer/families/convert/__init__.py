"""Published checkpoints in other layouts, made into teachers in diffusers format."""
