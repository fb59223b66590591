"""What a run takes, found without running it."""
