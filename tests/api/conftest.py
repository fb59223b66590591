"""A real API server, for what only it can refuse."""

from tests.cluster.fixtures import api

__all__ = ["api"]
