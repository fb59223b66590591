"""The exported pipeline and the model registry."""
