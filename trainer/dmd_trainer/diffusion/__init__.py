"""Noise schedules, denoisers, samplers and keyed randomness: tensors alone, no file and no process."""
