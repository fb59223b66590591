"""The fixtures that this folder's own tests use."""

from tests.cluster.fixtures import api, cluster

__all__ = ["api", "cluster"]
