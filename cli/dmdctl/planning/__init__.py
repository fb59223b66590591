"""Shows what a run would create, compute, store and need."""
