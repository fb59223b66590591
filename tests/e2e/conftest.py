"""The whole stack, once for all end-to-end tests: they run one after the other, without xdist."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import cluster  # noqa: F401
from tests.e2e.stack import Stack, bring_up


@pytest.fixture(scope="session")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with bring_up(cluster, tmp_path_factory.mktemp("stack")) as running:
        yield running
