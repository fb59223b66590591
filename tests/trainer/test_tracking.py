"""Tracking against a real MLflow server that comes and goes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmd_trainer.storage import FileStorage
from dmd_trainer.tracking import RUN_KEY_TAG, UNSENT, Tracker, mlflow_client, parameters
from dmdctl.local_runner import free_port
from tests.servers import Server, start_mlflow
from tests.stages import new_database


@pytest.fixture
def server_place(tmp_path: Path) -> Iterator[tuple[Path, int, list[Server]]]:
    """A folder and a port for an MLflow server, and the servers that a test started there."""
    servers: list[Server] = []
    yield tmp_path / "server", free_port(), servers
    for server in servers:
        server.stop()


def tracker(url: str, folder: Path, key: str = "key") -> Tracker:
    return Tracker(url, "tests", "run", key, folder / "spool", FileStorage(folder / "storage"))


def test_a_server_that_is_away_loses_nothing_and_stops_nothing(
    tmp_path: Path, server_place: tuple[Path, int, list[Server]]
) -> None:
    folder, port, servers = server_place
    url = f"http://127.0.0.1:{port}"
    tracking = tracker(url, tmp_path)
    before = time.time() * 1000
    tracking.log_params({"a.b": 1, "long": "x" * 5000})
    for step in range(5):
        tracking.log_metrics({"loss": step / 2}, step)
    logged = time.time() * 1000
    assert not tracking.flush(0.2)

    servers.append(start_mlflow(folder, port))
    assert tracking.flush(60)
    servers.pop().stop()
    tracking.log_metrics({"loss": 9.0}, 5)
    tracking.set_tags({"dmd.x": "y"})
    servers.append(start_mlflow(folder, port))
    tracking.log_artifact(b"{}", "files/report.json")
    assert tracking.flush(60)
    run_id = tracking.run_id
    tracking.close()

    assert run_id is not None
    client = mlflow_client(url)
    run = client.get_run(run_id)
    assert run.data.tags[RUN_KEY_TAG] == "key"
    assert run.data.tags["dmd.x"] == "y"
    assert run.data.params["a.b"] == "1"
    history = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 0), (1, 0.5), (2, 1), (3, 1.5), (4, 2), (5, 9)]
    early = [m for m in history if m.step < 5]
    assert all(before - 1 <= m.timestamp <= logged + 1 for m in early)
    assert [f.path for f in client.list_artifacts(run_id, "files")] == ["files/report.json"]


def test_what_was_not_sent_is_sent_by_the_next_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmd_trainer.tracking.CLOSE_SECONDS", 0.3)
    storage = tmp_path / "first" / "storage"
    lost = tracker(f"http://127.0.0.1:{free_port()}", tmp_path / "first")
    lost.log_metrics({"loss": 1.0}, 7)
    lost.close()
    assert (storage / UNSENT).exists()

    # Another machine: the spool is gone, the storage is there.
    url = new_database(tmp_path)
    found = Tracker(url, "tests", "run", "key", tmp_path / "second", FileStorage(storage))
    assert found.flush(60)
    run_id = found.run_id
    found.close()
    assert not (storage / UNSENT).exists()
    assert run_id is not None
    (metric,) = mlflow_client(url).get_metric_history(run_id, "loss")
    assert (metric.step, metric.value) == (7, 1.0)


def test_stages_of_one_run_share_one_mlflow_run(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    ids = []
    for key in ("key", "key", "other"):
        with tracker(url, tmp_path / key, key) as tracking:
            tracking.log_params({"same": "value"})
            assert tracking.flush(60)
            ids.append(tracking.run_id)
    assert ids[0] == ids[1] != ids[2]


def test_a_refused_record_does_not_hold_up_the_others(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    with tracker(url, tmp_path) as tracking:
        tracking.log_params({"a": "1"})
        tracking.log_params({"a": "2"})  # MLflow refuses to change a parameter
        tracking.log_metrics({"loss": 1.0}, 0)
        assert tracking.flush(60)
        assert tracking.run_id is not None
        assert mlflow_client(url).get_metric_history(tracking.run_id, "loss")


def test_parameters_are_flat_and_leave_secrets_and_pods_out() -> None:
    spec = {
        "training": {"batchSize": 8, "betas": [0.9, 0.99], "x": None},
        "storage": {"credentialsSecretRef": {"name": "s3"}, "uri": "s3://a"},
        "workers": {"podTemplate": {"spec": {}}, "nodes": 2},
    }
    assert parameters(spec) == {
        "training.batchSize": 8,
        "training.betas": [0.9, 0.99],
        "storage.uri": "s3://a",
        "workers.nodes": 2,
    }
