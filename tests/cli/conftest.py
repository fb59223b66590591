"""What tests against an API server share."""

import pytest

from tests.cli.resources import ensure_crd
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import GivenCluster


@pytest.fixture
def plane(api: ControlPlane | GivenCluster) -> ControlPlane:
    """A control plane of the tests' own, which may be restarted and given users and nodes, with the CRD."""
    if not isinstance(api, ControlPlane):
        pytest.skip("not to be done to a cluster that others use")
    ensure_crd(api)
    return api
