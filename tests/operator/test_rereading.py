"""Everything of a run is read again now and then: watches may lose an event, and nobody watches Services."""

import asyncio
import time

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from dmd_api.apps import PROGRESS_PORT
from dmd_api.stages import Stage
from dmd_operator.cluster import Cluster, progress_session
from dmd_operator.reconcile import READ_ALL_EVERY, READ_MOVING_EVERY, Reconciler
from dmd_operator.seen import Key, Seen
from dmd_operator.settings import OperatorSettings
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.simulated import simulated_pods, succeed
from tests.operator.test_clock import Hands

NAMESPACE, ADDRESS = "rereading", "127.4.0.2"
SECONDS_A_LOOK = 20.0


def test_a_service_that_workers_wait_for_comes_back_though_rank_0_answers(api: ControlPlane) -> None:
    """A step that moves shows that the workers have met; one that stands still does not."""
    live.install_crd(api.kubectl)
    live.make_namespace(api.kubectl, NAMESPACE)
    api.kubectl.apply(live.manifest("run", NAMESPACE, workers={"nodes": 2}))
    hands, key = Hands(), Key(NAMESPACE, "run")

    def has_service() -> bool:
        return live.exists(api.kubectl, "service", "run-distill-1", NAMESPACE)

    async def run() -> None:
        board = ProgressBoard(Stage.DISTILL, attempt=1)
        configuration = Configuration()
        await config.load_kube_config(str(api.kubeconfig), client_configuration=configuration)
        async with (
            ApiClient(configuration) as connection,
            progress_session(10) as http,
            simulated_pods(str(api.kubeconfig)) as pods,
        ):
            pods.address = lambda _: ADDRESS
            pods.ends = lambda pod: None if "distill" in pod["metadata"]["name"] else succeed(pod)
            reconciler = Reconciler(Cluster(connection, http), seen := Seen(), OperatorSettings(), hands.clock())

            async def look() -> None:
                await reconciler.look(key, time.monotonic())
                hands.passed += SECONDS_A_LOOK

            with ProgressServer(board, f"{ADDRESS}:{PROGRESS_PORT}"):
                for _ in range(300):
                    await look()
                    seen.run(key).read_at = None  # no watch tells this reconciler anything
                    if live.status(api.kubectl, "run", NAMESPACE).get("step") is not None:
                        break
                    await asyncio.sleep(0.1)
                await look()

                for moves, often in ((True, READ_MOVING_EVERY), (False, READ_ALL_EVERY)):
                    if not moves:
                        hands.passed += (READ_ALL_EVERY + often).total_seconds()
                        await look()
                    api.kubectl("delete", "service", "run-distill-1", "-n", NAMESPACE)
                    looked = 0
                    while not has_service() and looked < 100:
                        board.advance(int(moves))
                        await look()
                        looked += 1
                    waited = looked * SECONDS_A_LOOK
                    assert 0.8 * often.total_seconds() <= waited <= 1.2 * often.total_seconds(), (moves, waited)

    asyncio.run(run())
