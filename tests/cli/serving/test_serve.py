"""`dmdctl serve` as a command: what it listens on, what it loads, and that it follows an alias."""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from dmd_api.errors import BadInputError
from dmd_trainer.publishing.export import call_arguments
from dmd_trainer.publishing.registry import RegistryEntry, register_generator, set_alias
from dmd_trainer.tracking.client import TrackedRun, mlflow_client
from dmdctl.local.local_runner import free_port
from dmdctl.model.generator import Generator
from dmdctl.serving.app import Server
from dmdctl.serving.following import load
from dmdctl.serving.serve import Options, _teacher, serve_model
from tests.cli.serving.conftest import serving
from tests.operator.live import eventually
from tests.stages import new_database


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        (None, Options(host="0.0.0.0"), "--host 0.0.0.0: others can reach it"),
        (None, Options(host="::"), "--host ::: others can reach it"),
        ("short", Options(), "DMDCTL_SERVE_TOKEN: has 5 characters"),
        (None, Options(token_file=Path("/nowhere")), "--token-file /nowhere: cannot be read"),
        (None, Options(port=0), "is no diffusers pipeline's folder"),
        ("0123456789abcdef", Options(host="192.0.2.1", port=0), "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_refused(
    token: str | None, options: Options, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DMDCTL_SERVE_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("DMDCTL_SERVE_TOKEN", token)
    with pytest.raises(BadInputError, match=message):
        serve_model("/no/model", options)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=f"--port {port}: cannot be listened on"):
            serve_model("/no/model", Options(port=port))


def test_it_serves_until_it_is_stopped(
    class_generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "token").write_text("0123456789abcdef\n")
    header = {"Authorization": "Bearer 0123456789abcdef"}
    found: dict[str, Any] = {}
    stopped: list[int] = []

    def ask_and_stop() -> None:
        try:
            eventually(lambda: _answers(f"{url}/healthz"), "it answers", 60)
            found["without"] = requests.get(f"{url}/v1/model", timeout=30).status_code
            found["with"] = requests.get(f"{url}/v1/model", headers=header, timeout=30).json()["teacher"]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    thread = threading.Thread(target=ask_and_stop)
    thread.start()
    try:
        serve_model(str(class_generator.found.folder), Options(port=port, token_file=tmp_path / "token"))
    finally:
        thread.join(60)
        signal.signal(signal.SIGTERM, before)
    assert found == {"without": 401, "with": False}
    assert stopped, "it ends as the signal would have ended it"
    output = capsys.readouterr().out
    assert f"{url}/" in output
    assert "0123456789abcdef" not in output


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def registry(class_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with two versions of a generator, `served@champion` being the first."""
    uri = new_database(tmp_path_factory.mktemp("registry"))
    for key in ("one", "two"):
        entry = RegistryEntry(
            "served",
            class_generator.found.folder,
            call_arguments("ConsistencyModelPipeline"),
            "class_label",
            key,
            {},
        )
        register_generator(TrackedRun(uri, "tests", key, key), entry)
    set_alias(uri, "served", "champion", "1")
    return uri


def test_an_alias_is_followed_and_no_request_is_lost(registry: str) -> None:
    server = Server(load("models:/served@champion", registry), tracking=registry, follow_seconds=0.2)
    statuses: list[int] = []
    versions: set[str] = set()
    with serving(server) as served:
        assert served.get("/v1/model").json()["version"] == "1"
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = served.post(seed=1)
                statuses.append(answer.status_code)
                versions.add(answer.json()["version"])

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            set_alias(registry, "served", "champion", "2")
            eventually(lambda: served.get("/v1/model").json()["version"] == "2", "version 2", 60)
            eventually(lambda: "2" in versions, "a picture by version 2", 30)
            # A registry that has lost the alias changes nothing.
            mlflow_client(registry).delete_registered_model_alias("served", "champion")
            eventually(lambda: served.counted("dmd_serve_reloads_total", outcome="failed") > 0, "a look that fails", 30)
            assert served.get("/v1/model").json()["version"] == "2"
            assert served.get("/healthz").status_code == 200
            assert served.counted("dmd_serve_model", model="models:/served@champion", version="1") == 0
        finally:
            done.set()
            asking.join(30)
            set_alias(registry, "served", "champion", "1")
    assert set(statuses) == {200}


def test_the_teacher_of_a_registered_model_is_found_by_its_run(
    registry: str, tiny_teacher: Path, manifest_dict: dict
) -> None:
    from dmd_api.loading import parse_manifest

    generator = load("models:/served/1", registry).generator
    assert _teacher(generator, Options(tracking=registry)) is None
    client = mlflow_client(registry)
    run = client.get_model_version("served", "1").run_id
    client.log_text(run, parse_manifest(manifest_dict).model_dump_json(by_alias=True), "manifest.json")
    found = _teacher(generator, Options(tracking=registry))
    assert found is not None
    assert _teacher(generator, Options(tracking=registry, teacher="none")) is None
    away = {**manifest_dict, "spec": {**manifest_dict["spec"], "teacher": {"uri": "hf://owner/name"}}}
    client.log_text(run, parse_manifest(away).model_dump_json(by_alias=True), "manifest.json")
    assert _teacher(generator, Options(tracking=registry)) is None, "nothing is downloaded unasked"
    with pytest.raises(BadInputError, match="--teacher"):
        _teacher(generator, Options(tracking=registry, teacher=os.devnull))
