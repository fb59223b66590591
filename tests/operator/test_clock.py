"""A clock that is set, in either direction, while a run is at work or waits."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from dmd_api.apps import PROGRESS_PORT
from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.backoff import SHORTEST_ATTEMPT, next_attempt_time
from dmd_operator.clock import Clock, moved
from dmd_operator.cluster import Cluster, progress_session
from dmd_operator.deadline import until_deadline
from dmd_operator.reconcile import Reconciler
from dmd_operator.run import Run
from dmd_operator.seen import Key, Seen
from dmd_operator.settings import OperatorSettings
from dmd_operator.stored_status import read_status
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer
from tests.cluster.control_plane import ControlPlane
from tests.operator import live
from tests.operator.simulated import simulated_pods
from tests.operator.test_decide import NOW, job, look, manifest, running

HOUR = timedelta(hours=1)
NAMESPACE, ADDRESS = "clock", "127.4.0.1"


class Hands:
    """A clock's hands, which a test moves, and a steady clock's."""

    def __init__(self) -> None:
        self.set, self.passed = 0.0, 0.0

    def clock(self) -> Clock:
        began = time.time()
        return Clock(lambda: began + self.passed + self.set, lambda: self.passed)


def test_a_clock_that_was_set_is_noticed_and_one_that_drifts_is_not() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.passed = 1000.0
    assert clock.set_so_far() == timedelta()
    hands.set = 3600.0
    assert clock.set_so_far() == clock.set_so_far() == HOUR
    hands.set = -3600.0
    assert clock.set_so_far() == -HOUR
    for _ in range(10):
        hands.set += 1.0
        assert clock.set_so_far() == -HOUR


def test_durations_stay_and_dates_do_too() -> None:
    status = RunStatus(active_since=NOW, last_progress_time=NOW, start_time=NOW)
    found = moved(status, HOUR)
    assert (found.active_since, found.last_progress_time) == (NOW + HOUR, NOW + HOUR)
    assert (found.start_time, found.next_attempt_time) == (NOW, None)


@pytest.mark.parametrize("ahead", [timedelta(), HOUR], ids=["in step", "API server ahead"])
def test_no_attempt_waits_for_the_api_servers_clock(ahead: timedelta) -> None:
    assert next_attempt_time(NOW, NOW + ahead, timedelta()) == NOW + SHORTEST_ATTEMPT


def test_times_of_a_clock_that_was_ahead_hold_nothing_up() -> None:
    later = NOW + HOUR
    assert look(ended_attempt=1, next_attempt_time=later).create == (Stage.DISTILL, 2)
    at_work = job(Stage.DISTILL, 1, running(0), running(1), completions=2)
    assert look(at_work, last_progress_time=later).status.last_progress_time == NOW
    run = Run(manifest(activeDeadlineSeconds=60), RunStatus(active_since=later), (), NOW)
    assert until_deadline(run) == timedelta(seconds=60)


def test_a_run_whose_step_takes_long_is_no_stall_when_the_clock_is_set(api: ControlPlane) -> None:
    """The step stands still from look to look, as that of a large model does; nothing but the clock says an hour."""
    live.install_crd(api.kubectl)
    live.make_namespace(api.kubectl, NAMESPACE)
    api.kubectl.apply(live.manifest("run", NAMESPACE))
    hands, key = Hands(), Key(NAMESPACE, "run")

    async def until(reconciler: Reconciler, done: Callable[[RunStatus], bool]) -> RunStatus:
        """Looks at the run, at another moment each time, until its status is like that."""
        for _ in range(100):
            await reconciler.look(key, time.monotonic())
            hands.passed += 1.0
            status, _ = read_status(live.status(api.kubectl, "run", NAMESPACE))
            if done(status):
                return status
            await asyncio.sleep(0.1)
        raise AssertionError(live.describe(live.status(api.kubectl, "run", NAMESPACE)))

    async def run() -> None:
        board = ProgressBoard(Stage.PREFLIGHT, attempt=1)
        board.update(step=7, activity="training")
        configuration = Configuration()
        await config.load_kube_config(str(api.kubeconfig), client_configuration=configuration)
        async with (
            ApiClient(configuration) as connection,
            progress_session(10) as http,
            simulated_pods(str(api.kubeconfig), lambda _: None) as pods,
        ):
            pods.address = lambda _: ADDRESS
            settings = OperatorSettings(figures_seconds=0.001)
            reconciler = Reconciler(Cluster(connection, http), Seen(), settings, hands.clock())
            with ProgressServer(board, f"{ADDRESS}:{PROGRESS_PORT}"):
                before = await until(reconciler, lambda status: status.step == 7)
                assert before.last_progress_time is not None
                for set_to in (3600.0, -3600.0):
                    hands.set = set_to
                    close = before.last_progress_time + timedelta(seconds=set_to)

                    def shown(status: RunStatus, close: datetime = close) -> bool:
                        return abs((status.last_progress_time or NOW) - close) < timedelta(minutes=5)

                    found = await until(reconciler, shown)
                    assert (found.attempt, found.ended_attempt, found.failures) == (1, 0, 0)
                    assert (found.condition("Stalled"), found.step) == (None, 7)

    asyncio.run(run())
