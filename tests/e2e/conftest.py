"""The whole stack, once for all end-to-end tests: they run one after the other, without xdist."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.runs import undisturbed_weights
from tests.e2e.stack import Stack, bring_up


@pytest.fixture(scope="session")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with bring_up(cluster, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[str]]:
    """The hash of the weights of a run that nothing disturbs; it is found while the first disturbed run begins."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(undisturbed_weights, tmp_path_factory.mktemp("undisturbed"))
