"""The whole stack, once for all end-to-end tests: they run one after the other, without xdist."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.runs import apply, wait_until_complete
from tests.e2e.stack import TEAM, Stack, bring_up
from tests.operator.live import status


@pytest.fixture(scope="session")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with bring_up(cluster, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(stack: Stack) -> str:
    """The hash of the weights that every run of this manifest ends with."""
    apply(stack, "undisturbed")
    wait_until_complete(stack, "undisturbed")
    assert status(stack.kubectl, "undisturbed", TEAM)["failures"] == 0
    weights: str = stack.report("undisturbed")["generatorSha256"]
    return weights
