"""What rank 0 serves."""

import json
import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest

from dmd_api.runtime import Progress
from dmd_api.stages import Stage
from dmd_trainer.runtime.progress import ProgressBoard, ProgressServer


def get(server: ProgressServer, path: str, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{server.port}{path}", timeout=5) as response:
        return str(response.read().decode())


def test_progress_and_metrics_follow_the_board() -> None:
    board = ProgressBoard(Stage.DISTILL, attempt=2)
    with ProgressServer(board, "127.0.0.1:0") as server:
        board.update(step=3, total=10, losses={"regression": 0.5}, fid=1.5, health={"diversity": 0.9}, warnings=["x"])
        board.advance(4)
        board.message("look")
        progress = Progress.model_validate(json.loads(get(server, "/progress")))
        assert (progress.step, progress.attempt, progress.messages) == (7, 2, ["look"])
        metrics = get(server, "/metrics")
        assert 'dmd_step{stage="distill"} 7.0' in metrics
        assert 'dmd_loss{loss="regression",stage="distill"} 0.5' in metrics
        assert 'dmd_health{measure="diversity",stage="distill"} 0.9' in metrics
        assert 'dmd_health_warnings{stage="distill"} 1.0' in metrics
        assert "dmd_best_fid" not in metrics
        with pytest.raises(urllib.error.HTTPError):
            get(server, "/other")


def test_whoever_hangs_up_before_the_answer_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    class Slow(ProgressBoard):
        @property
        def current(self) -> Progress:
            asked.set()
            gone.wait(10)
            return super().current

    with ProgressServer(Slow(Stage.DISTILL), "127.0.0.1:0") as server:
        assert server.port is not None
        before = set(threading.enumerate())
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(b"GET /progress HTTP/1.1\r\nHost: x\r\n\r\n")
            assert asked.wait(10)
            answering = set(threading.enumerate()) - before
            # Closed with a reset at once, not after what is on its way.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.set()
        for thread in answering:
            thread.join(10)
    assert capfd.readouterr().err == ""


def test_an_activity_for_a_while_gives_way_to_the_one_before_unless_it_failed() -> None:
    board = ProgressBoard(Stage.DISTILL)
    board.update(activity="training")
    with board.doing("uploading a checkpoint"):
        assert board.current.activity == "uploading a checkpoint"
    assert board.current.activity == "training"
    with pytest.raises(OSError, match="full"), board.doing("uploading a checkpoint"):
        raise OSError("full")
    assert board.current.activity == "uploading a checkpoint"


def test_how_long_nothing_has_changed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dmd_trainer.runtime.progress.time.monotonic", lambda: now)
    board = ProgressBoard(Stage.DISTILL)
    board.update(activity="training", step=1)
    now += 20
    board.update(losses={"regression": 0.5}, activity="training")
    assert board.current.unchanged_seconds == 20
    board.advance(1)
    assert board.current.unchanged_seconds == 0
    now += 5
    assert board.current.unchanged_seconds == 5


def test_a_step_does_not_pass_the_total_and_messages_are_bounded() -> None:
    board = ProgressBoard(Stage.PREPARE)
    board.update(total=5)
    board.advance(8)
    for number in range(50):
        board.message(str(number))
    assert board.current.step == 5
    assert len(board.current.messages) == 20
    assert board.current.messages[-1] == "49"


def test_what_is_left_is_estimated_from_the_steps_after_the_first() -> None:
    board = ProgressBoard(Stage.PREPARE)
    board.update(total=100)
    board.advance(10)
    assert board.current.eta_seconds is None, "loading says nothing of the rest"
    board.advance(10)
    eta = board.current.eta_seconds
    assert eta is not None
    assert 0 < eta < 8 * 60, "80 more, ten of which took a moment"


@pytest.mark.parametrize(
    ("address", "hosts"), [(":0", ["127.0.0.1", "[::1]"]), ("[::1]:0", ["[::1]"]), ("0.0.0.0:0", ["127.0.0.1"])]
)
def test_it_answers_in_clusters_of_either_kind_of_address(address: str, hosts: list[str]) -> None:
    with ProgressServer(ProgressBoard(Stage.PREPARE), address) as server:
        for host in hosts:
            assert '"stage":"prepare"' in get(server, "/progress", host)


def test_without_an_address_nothing_is_served() -> None:
    with ProgressServer(ProgressBoard(Stage.PREPARE), "") as server:
        assert server.port is None
