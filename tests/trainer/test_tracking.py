"""Tracking against a real MLflow server that comes and goes."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmd_api import __version__
from dmd_api.errors import BadInputError, InterruptedRunError, TrainingDivergedError
from dmd_api.loading import load_manifest
from dmd_api.text import neutral
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.tracking.client import RUN_KEY_TAG, TrackedRun, find_or_create_run, mlflow_client
from dmd_trainer.tracking.provenance import creator_tags
from dmd_trainer.tracking.spool import Spool
from dmd_trainer.tracking.tracker import UNSENT, Tracker, parameters
from dmdctl.local.local_runner import free_port
from tests.awkward import AWKWARD, steers
from tests.servers import Server, start_mlflow
from tests.stages import new_database

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server_place(tmp_path: Path) -> Iterator[tuple[Path, int, list[Server]]]:
    """A folder and a port for an MLflow server, and the servers that a test started there."""
    servers: list[Server] = []
    yield tmp_path / "server", free_port(), servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that exists: creating one takes seconds, and importing mlflow does."""
    url = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    mlflow_client(url).search_experiments()
    return url


def tracker(url: str, folder: Path, key: str = "key") -> Tracker:
    return Tracker(TrackedRun(url, "tests", "run", key), folder / "spool", FileStorage(folder / "storage"))


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


def test_what_was_not_sent_is_sent_by_the_next_tracker(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd_trainer.tracking.tracker.CLOSE_SECONDS", 0.3)
    storage = tmp_path / "first" / "storage"
    lost = tracker(f"http://127.0.0.1:{free_port()}", tmp_path / "first", "lost")
    lost.log_metrics({"loss": 1.0}, 7)
    lost.close()
    assert (storage / UNSENT).exists()

    # Another machine: the spool is gone, the storage is there.
    found = Tracker(TrackedRun(database, "tests", "run", "lost"), tmp_path / "second", FileStorage(storage))
    assert found.flush(60)
    run_id = found.run_id
    found.close()
    assert not (storage / UNSENT).exists()
    assert run_id is not None
    (metric,) = mlflow_client(database).get_metric_history(run_id, "loss")
    assert (metric.step, metric.value) == (7, 1.0)


def test_a_record_from_storage_names_no_file_of_the_machine(database: str, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "storage")
    secret = tmp_path / "secret"
    secret.write_text("token")
    foreign = [
        {"kind": "artifact", "file": str(secret), "name": "stolen.txt", "time": 1},
        {"kind": "image", "file": str(secret), "key": "stolen", "step": 0, "time": 1},
        ["metrics"],
        {"kind": "metrics"},
    ]
    own = {"kind": "metrics", "values": {"loss": 1.0}, "step": 7, "time": 1}
    storage.write(UNSENT, "\n".join([*map(json.dumps, [*foreign, own]), "{half a"]).encode())
    tracking = Tracker(TrackedRun(database, "tests", "run", "foreign"), tmp_path / "spool", storage)
    assert tracking.flush(60)
    run_id = tracking.run_id
    tracking.close()
    assert run_id is not None
    assert secret.read_text() == "token"
    assert mlflow_client(database).list_artifacts(run_id) == []
    assert [m.step for m in mlflow_client(database).get_metric_history(run_id, "loss")] == [7]


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "a/../../secret"])
def test_a_spool_keeps_to_its_folder(name: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.kept(spool.keep(b"content")).read_bytes() == b"content"
    with pytest.raises(BadInputError, match="segment"):
        spool.kept(name)


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


def status(url: str, key: str = "key") -> str:
    """The run's, as the server has it."""
    client = mlflow_client(url)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'")
    return str(run.info.status)


def attempt(tracking: Tracker, error: Exception | None = None) -> None:
    """An attempt at a stage that ends with `error`."""
    with suppress(InterruptedRunError, TrainingDivergedError, RuntimeError), tracking:
        tracking.log_metrics({"loss": 1.0}, 0)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "RUNNING"),  # another stage follows
        (InterruptedRunError("interrupted at step 3"), "KILLED"),
        (TrainingDivergedError("a loss is NaN"), "FAILED"),
        (RuntimeError("Connection closed by peer"), "FAILED"),
    ],
)
def test_the_end_of_an_attempt_is_the_runs_status(
    database: str, tmp_path: Path, error: Exception | None, expected: str
) -> None:
    key = tmp_path.name
    attempt(tracker(database, tmp_path, key), error)
    assert status(database, key) == expected
    with tracker(database, tmp_path, key) as tracking:  # the next attempt
        assert tracking.flush(60)
        assert status(database, key) == "RUNNING"


def test_a_server_that_is_away_neither_delays_an_interruption_nor_mixes_up_statuses(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd_trainer.tracking.tracker.CLOSE_SECONDS", 0.3)
    storage, error = FileStorage(tmp_path / "storage"), InterruptedRunError("interrupted")
    away = TrackedRun(f"http://127.0.0.1:{free_port()}", "tests", "run", "away")
    interrupted = Tracker(away, tmp_path / "first", storage)
    interrupted.__enter__()
    started = time.monotonic()
    interrupted.__exit__(type(error), error, None)
    assert time.monotonic() - started < 5
    assert b"KILLED" in storage.read(UNSENT)

    # Another machine, and the server is back.
    monkeypatch.undo()
    with Tracker(replace(away, uri=database), tmp_path / "second", storage) as tracking:
        assert tracking.flush(60)
        assert status(database, "away") == "RUNNING"
        assert tracking.run_id is not None
        assert mlflow_client(database).get_run(tracking.run_id).info.end_time is not None  # KILLED came before


def test_an_interruption_stays_one_where_storage_does_not_take_what_is_unsent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd_trainer.tracking.tracker.CLOSE_SECONDS", 0.3)
    (tmp_path / "storage").write_text("a file in the way")
    with pytest.raises(InterruptedRunError), tracker(f"http://127.0.0.1:{free_port()}", tmp_path):
        raise InterruptedRunError("interrupted")


def test_half_a_record_of_a_process_that_died_spoils_no_other(database: str, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "records.jsonl").write_text('{"kind": "metrics", "val')
    with tracker(database, tmp_path, "half") as tracking:
        assert tracking.flush(60)
    assert status(database, "half") == "RUNNING"


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


def test_what_others_wrote_is_neutral_in_mlflow(tmp_path: Path, database: str) -> None:
    tracking = tracker(database, tmp_path, "awkward")
    texts = {f"p{number}": text for number, text in enumerate(AWKWARD.values())}
    tracking.log_params(texts)
    tracking.set_tags({f"dmd.{name}": text for name, text in texts.items()})
    assert tracking.flush(60)
    data = mlflow_client(database).get_run(str(tracking.run_id)).data
    tracking.close()
    assert data.params == {name: neutral(text) for name, text in texts.items()}
    assert {name: data.tags[f"dmd.{name}"] for name in texts} == data.params
    assert not any(map(steers, data.params.values()))


def test_a_run_says_where_it_comes_from_and_what_it_reads_once(tmp_path: Path, database: str) -> None:
    manifest = load_manifest(ROOT / "examples" / "distill-digits.yaml")
    for _ in range(2):  # attempts of one run
        with tracker(database, tmp_path, "provenance") as tracking:
            tracking.log_manifest(manifest, torch.device("cpu"), 2)
            assert tracking.flush(60)
    client = mlflow_client(database)
    run = client.get_run(str(tracking.run_id))
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "DMDDistillation distill-digits"
    assert (tags["mlflow.source.type"], tags["dmd.devices"], tags["dmd.version"]) == ("LOCAL", "2 x cpu", __version__)
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert tags.get("mlflow.source.git.commit") == (head.stdout.strip() or None)
    found = {read.tags[0].value: read.dataset for read in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == len(found), "nothing twice"
    assert found.keys() == {"teacher", "pairs", "reference"}
    assert json.loads(found["teacher"].source) == {"uri": "builtin://digits-teacher"}
    assert found["reference"].name == "digits"
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert "builtin://digits-teacher" in tags["mlflow.note.content"]


def test_a_run_says_who_created_it(
    server_place: tuple[Path, int, list[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port, servers = server_place
    servers.append(start_mlflow(folder, port))
    client = mlflow_client(f"http://127.0.0.1:{port}")

    def creator(key: str) -> tuple[str | None, str]:
        run = client.get_run(find_or_create_run(client, TrackedRun("http://there", "tests", "run", key)))
        return run.data.tags.get("mlflow.user"), run.info.user_id

    for variable in ("MLFLOW_TRACKING_USERNAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LOGNAME", "ada")
    assert creator("a laptop") == ("ada", "ada")
    monkeypatch.setenv("LOGNAME", "grace")
    assert creator("a laptop") == ("ada", "ada"), "others may go on with it"
    monkeypatch.setenv("LOGNAME", "a\x1b[2Jb")
    assert creator("awkward")[0] == neutral("a\x1b[2Jb")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert creator("a pod") == (None, "unknown"), "the user of a pod is nobody"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    assert creator("a pod with credentials")[0] == "team"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert creator("a laptop with credentials")[0] == "team", "it is whom the server knows"


def test_a_user_without_a_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_USERNAME", "KUBERNETES_SERVICE_HOST", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert creator_tags() == {}
