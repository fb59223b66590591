"""The fixtures that the chart's tests share."""

from tests.cluster.fixtures import api

__all__ = ["api"]
