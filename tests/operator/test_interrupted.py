"""The API as an operator sometimes finds it: the CRD gone and back, and requests that are turned away."""

import random
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.live import CRD, eventually
from tests.operator.process import operator
from tests.operator.test_live import Played, played
from tests.operator.throttling import throttled

__all__ = ["played"]


def test_a_crd_that_is_deleted_and_applied_again_is_watched_again(
    api: ControlPlane, played: Played, tmp_path: Path
) -> None:
    live.make_namespace(api.kubectl, "crd")
    with operator(api.kubeconfig, tmp_path) as process:
        api.kubectl.apply(live.manifest("before", "crd"))
        live.wait_until_complete(api.kubectl, "before", "crd")
        api.kubectl("delete", "-f", str(CRD), "--timeout=60s")
        eventually(lambda: "cannot be watched yet" in process.log.read_text(), "it says so")
        assert process.process.poll() is None
        live.install_crd(api.kubectl)
        api.kubectl.apply(live.manifest("after", "crd"))
        live.wait_until_complete(api.kubectl, "after", "crd")
        assert "Traceback" not in process.log.read_text()


def test_an_api_server_that_throttles_delays_and_nothing_else(
    api: ControlPlane, played: Played, tmp_path: Path
) -> None:
    live.make_namespace(api.kubectl, "throttled")
    with (
        throttled(api.kubeconfig, tmp_path / "kubeconfig", 0.3, random.Random(0)) as server,
        operator(server.kubeconfig, tmp_path / "operator") as process,
    ):
        names = [f"run-{number}" for number in range(2)]
        api.kubectl.apply(*(live.manifest(name, "throttled") for name in names))
        for name in names:
            live.wait_until_complete(api.kubectl, name, "throttled")
        assert server.turned_away > 10
        assert "Traceback" not in process.log.read_text()
        for name in names:
            reasons = [reason for reason, _ in live.events(api.kubectl, name, "throttled")]
            assert reasons.count("AttemptCreated") == 4, "none was begun twice"
            assert live.status(api.kubectl, name, "throttled").get("failures", 0) == 0
