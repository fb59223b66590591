"""A run's memory, work, time and storage, found without running it."""
