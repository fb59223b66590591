"""The training loop, its cadence, and the checkpoints and generators that it keeps."""
