"""A real API server for the tests of the running operator."""

from tests.cluster.fixtures import api

__all__ = ["api"]
