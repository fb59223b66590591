"""The registered generator: found again, loaded without this project, served over HTTP."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dmd_api.errors import BadInputError, InfrastructureError, InterruptedRunError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Location
from dmd_api.stages import Stage
from dmd_api.text import neutral
from dmd_trainer.evaluation.gallery import GENERATOR_PICTURE
from dmd_trainer.evaluation.report import Report, ThreeWay, TwoWay
from dmd_trainer.families.initial_weights import read_initial_weights
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, call_arguments, export_pipeline
from dmd_trainer.publishing.publish import finish_run, publish
from dmd_trainer.publishing.registry import RegistryEntry, open_run, register_generator, set_alias
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.registry import use_registry
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.tracking.client import TrackedRun, failing_run, mlflow_client
from dmd_trainer.tracking.tracker import Tracker
from dmdctl.local.local_runner import free_port
from tests.awkward import AWKWARD
from tests.stages import new_database


@pytest.fixture(scope="module")
def registered(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A registry with one generator, `tiny@champion`, and its pipeline's folder."""
    folder = tmp_path_factory.mktemp("registry")
    uri = new_database(folder)
    teacher = load_teacher(tiny_teacher)
    weights = teacher.denoiser.network.state_dict()
    export_pipeline(teacher, weights, [999], folder / "pipeline", CardFacts("tiny", "file:///t", "DMD", "abc", "1"))
    versions = [
        register_generator(
            TrackedRun(uri, "tests", "tiny", "key"),
            RegistryEntry(
                "tiny",
                folder / "pipeline",
                call_arguments("ConsistencyModelPipeline"),
                "class_label",
                "sha",
                {"dmd.method": "DMD", "dmd.teacher": "".join(AWKWARD.values())},
            ),
        )
        for _ in range(2)
    ]
    assert [found.model_version for found in versions] == ["1", "1"]  # the second finds the first
    set_alias(uri, "tiny", "champion", "1")
    return uri, folder / "pipeline"


def test_a_version_is_ready_tagged_and_has_its_alias(registered: tuple[str, Path]) -> None:
    version = mlflow_client(registered[0]).get_model_version_by_alias("tiny", "champion")
    assert version.status == "READY"
    assert version.tags["dmd.method"] == "DMD"
    assert version.tags["dmd.run_key"] == "key"
    assert version.tags["dmd.teacher"] == neutral("".join(AWKWARD.values()))
    assert version.description.startswith("# tiny"), "the card, without what is for the hub"
    assert mlflow_client(registered[0]).get_registered_model("tiny").description == version.description


def test_runs_read_registered_generators_and_do_not_mix_them(
    registered: tuple[str, Path], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a teacher, and as what a run starts from; from the server of the run, whatever MLflow takes by itself."""
    uri, _ = registered
    teacher = load_teacher(tiny_teacher)
    weights = {name: value + 1 for name, value in teacher.denoiser.network.state_dict().items()}
    export_pipeline(teacher, weights, [999], tmp_path / "other", CardFacts("other", "file:///t", "DMD", "abc", "1"))
    entry = RegistryEntry("other", tmp_path / "other", call_arguments("ConsistencyModelPipeline"), "x", "sha", {})
    register_generator(TrackedRun(uri, "tests", "other", "other"), entry)
    set_alias(uri, "other", "champion", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path / "elsewhere"))
    scratch = tmp_path / "scratch"
    with pytest.raises(BadInputError, match=r"tiny@champion: .*not found; check the name and spec\.tracking\.uri"):
        local_path("models:/tiny@champion", scratch)

    use_registry(uri)
    for name, expected in (("tiny", teacher.denoiser.network.state_dict()), ("other", weights)):
        folder = "pipeline" if name == "tiny" else name
        for place in ("@champion", "/1", f"/1/artifacts/{folder}/unet"):
            found = read_initial_weights(Location(uri=f"models:/{name}{place}"), "generator", scratch)
            assert found is not None
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert load_teacher(local_path(f"models:/{name}@champion", scratch)).sample_shape == teacher.sample_shape
    with pytest.raises(BadInputError, match="alias"):
        local_path("models:/tiny@challenger", scratch)


FOREIGN = """
import builtins, sys
original = builtins.__import__
def guarded(name, *args, **kwargs):
    assert not name.startswith(("dmd_", "dmdctl")), name
    return original(name, *args, **kwargs)
builtins.__import__ = guarded
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
table = pd.DataFrame({"seed": [1, 2, 1], "class_label": [3, 4, 3]})
print("RESULT", "|".join(model.predict(table)["png"]))
assert model.metadata.get_input_schema() is not None and model.metadata.saved_input_example_info is not None
requirements = open(mlflow.pyfunc.get_model_dependencies("models:/tiny@champion")).read()
assert "torch==" in requirements and "diffusers==" in requirements and "dmd" not in requirements, requirements
"""


def test_the_model_loads_and_draws_without_this_project(registered: tuple[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, registered[0]], check=False, timeout=200, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    images = [pixels(text) for text in line.removeprefix("RESULT ").split("|")]
    assert images[0].shape == (8, 8)
    np.testing.assert_array_equal(images[0], images[2])  # the same seed and label, alone or in a batch
    assert (images[0] != images[1]).any()


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


REFUSED: list[tuple[list[str], list[int], dict[str, int], str]] = [
    (["class_label"], [3], {"steps": 2}, "params.steps: 2 is not an integer from 1 to 1"),
    (["class_label"], [3], {"seed": -1}, "params.seed: -1 is not an integer from 0 to 9223372036854775807"),
    (["seed", "class_label"], [-1, 3], {}, "seed: -1 is not an integer from 0 to 9223372036854775807"),
    (["class_label"], [10], {}, "class_label: 10 is not an integer from 0 to 9"),
    (["seed", "class_label"], [1, 3], {"seed": 1}, "seed is both a column and in params"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflow_models_serve_answers_with_images(registered: tuple[str, Path], tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "serve.log"
    command = ["models", "serve", "-m", "models:/tiny@champion", "--env-manager", "local", "-h", "127.0.0.1"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "-p", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": registered[0], "MLFLOW_DISABLE_TELEMETRY": "true",
                 "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        body = json.dumps({"dataframe_split": {"columns": ["seed", "class_label"], "data": [[0, 3], [1, 7]]}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        answer = post_when_up(request, server, log)
        rows = answer["predictions"]
        assert [pixels(row["png"]).shape for row in rows] == [(8, 8), (8, 8)]

        def answered(columns: list[str], data: list[list[int]], **params: int) -> list[np.ndarray]:
            content = {"dataframe_split": {"columns": columns, "data": data}, "params": params}
            request.data = json.dumps(content).encode()
            with urllib.request.urlopen(request, timeout=60) as response:
                return [pixels(row["png"]) for row in json.load(response)["predictions"]]

        by_column = answered(["seed", "class_label"], [[5, 3], [6, 3]])
        by_params = answered(["class_label"], [[3], [3]], seed=5, steps=1)
        np.testing.assert_array_equal(by_column, by_params)
        for columns, row, params, message in REFUSED:
            with pytest.raises(urllib.error.HTTPError) as refused:
                answered(columns, [row], **params)
            assert refused.value.code == 400, message
            assert message in refused.value.read().decode()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def post_when_up(request: urllib.request.Request, server: subprocess.Popen[bytes], log: Path) -> dict:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error}: {error.read()[:1000]!r} {log.read_text()[-2000:]}") from error
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def evaluated(manifest: dict[str, Any], uri: str, folder: Path) -> tuple[StageContext, Report]:
    """Rank 0 of an evaluation that has measured a generator, whose run is tracked at `uri`."""
    manifest["spec"]["tracking"]["uri"] = uri
    storage = FileStorage(folder / "storage")
    context = StageContext(
        Stage.EVALUATE, parse_manifest(manifest), "key", 1, storage, storage, scratch=folder / "scratch"
    )
    storage.write(GENERATOR_PICTURE, b"a picture")
    report = Report(
        name="tiny",
        method="DMD",
        manifest_hash="abc",
        seed=0,
        samples=1,
        features="digits",
        fid=ThreeWay(teacher=1, initial=3, generator=2),
        network_evaluations=TwoWay(teacher=5, generator=1),
        seconds_per_image=TwoWay(teacher=5, generator=1),
        device="cpu",
        gates=[],
        best_step=1,
        generator_sha256="sha",
    )
    return context, report


def test_a_run_is_finished_when_everything_has_arrived(
    tiny_teacher: Path, manifest_dict: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    sent: list[str] = []

    def spy(method: str, word: Callable[..., str]) -> None:
        original = getattr(MlflowClient, method)

        def called(self: MlflowClient, run: str, *arguments: Any, **options: Any) -> Any:
            sent.append(word(*arguments, **options))
            return original(self, run, *arguments, **options)

        monkeypatch.setattr(MlflowClient, method, called)

    spy("log_artifact", lambda path, folder=None: Path(path).name)
    spy("set_terminated", lambda status=None, end_time=None: status or "FINISHED")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    context, report = evaluated(manifest_dict, uri, tmp_path)
    run, teacher = TrackedRun.of(context.manifest, "key"), load_teacher(tiny_teacher)
    with Tracker(run, tmp_path / "spool", context.storage) as context.tracker:
        report = publish(context, teacher, teacher.denoiser.network.state_dict(), [999], report)
        finish_run(context, report)
        assert report.mlflow_run is not None
        assert mlflow_client(uri).get_run(report.mlflow_run).info.status == "FINISHED"
    assert sent == ["report.json", "FINISHED"]
    client = mlflow_client(uri)
    assert client.get_run(report.mlflow_run).info.status == "FINISHED"
    assert client.get_run(report.mlflow_run).data.metrics["final/fid_generator"] == 2
    content = Path(client.download_artifacts(report.mlflow_run, "report.json", str(tmp_path))).read_text()
    assert Report.model_validate_json(content) == report
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.run_id == report.mlflow_run


def test_records_that_do_not_arrive_are_an_infrastructure_error(
    registered: tuple[str, Path],
    tiny_teacher: Path,
    manifest_dict: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tracker has not connected yet where the registry has: the report names the run all the same."""
    monkeypatch.setattr("dmd_trainer.tracking.tracker.CLOSE_SECONDS", 0.3)
    context, report = evaluated(manifest_dict, registered[0], tmp_path)
    teacher = load_teacher(tiny_teacher)
    away = TrackedRun(f"http://127.0.0.1:{free_port()}", "tests", "tiny", "key")
    with Tracker(away, tmp_path / "spool", context.storage) as context.tracker:
        report = publish(context, teacher, teacher.denoiser.network.state_dict(), [999], report)
        version = mlflow_client(registered[0]).get_model_version("tiny", report.model_version)
        assert (report.model_version, report.mlflow_run) == ("1", version.run_id)
        with pytest.raises(InfrastructureError, match="the report and the last records are not in its run"):
            finish_run(context, report, patience=0)
        context._stop.set()
        with pytest.raises(InterruptedRunError):
            finish_run(context, report)


def test_a_registry_that_is_away_is_an_infrastructure_error() -> None:
    with pytest.raises(InfrastructureError, match="does not answer"):
        open_run(TrackedRun(f"http://127.0.0.1:{free_port()}", "tests", "tiny", "key"), "tiny", "{}")


def test_a_run_is_opened_once_with_all_that_its_end_needs(tmp_path: Path) -> None:
    run = TrackedRun(new_database(tmp_path), "tests", "tiny", "key")
    opened = [open_run(run, "tiny", '{"kind": "x"}') for _ in range(2)]
    assert opened[0] == opened[1]
    client = mlflow_client(run.uri)
    assert client.get_run(opened[0]).info.status == "SCHEDULED"
    assert Path(client.download_artifacts(opened[0], "manifest.json", str(tmp_path))).read_text() == '{"kind": "x"}'
    assert client.get_registered_model("tiny").name == "tiny"


@pytest.mark.parametrize(("error", "status"), [(InterruptedRunError("x"), "KILLED"), (BadInputError("x"), "FAILED")])
def test_a_run_that_fails_before_its_tracker_began_says_so(tmp_path: Path, error: Exception, status: str) -> None:
    run = TrackedRun(new_database(tmp_path), "tests", "tiny", "key")
    run_id = open_run(run, "tiny", "{}")
    with pytest.raises(type(error)), failing_run(run, run_id):
        raise error
    assert mlflow_client(run.uri).get_run(run_id).info.status == status


def test_a_deleted_experiment_is_refused_with_the_remedy(tmp_path: Path) -> None:
    run = TrackedRun(new_database(tmp_path), "tests", "tiny", "key")
    client = mlflow_client(run.uri)
    experiment = client.create_experiment("tests")
    client.delete_experiment(experiment)
    with pytest.raises(
        BadInputError, match=rf"spec\.tracking\.experiment: tests is deleted.*--experiment-id {experiment}"
    ):
        open_run(run, "tiny", "{}")
    client.restore_experiment(experiment)
    open_run(run, "tiny", "{}")


def test_a_name_that_a_prompt_has_is_refused(tmp_path: Path) -> None:
    run = TrackedRun(new_database(tmp_path), "tests", "tiny", "key")
    mlflow_client(run.uri).register_prompt("tiny", "a template")
    with pytest.raises(BadInputError, match=r"spec\.tracking\.registeredModel: tiny"):
        open_run(run, "tiny", "{}")


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (200, b'{"experiment": 3}'), (404, b"no"), (405, b"no")]
)
def test_a_server_that_is_not_mlflow_is_bad_input(status: int, body: bytes) -> None:
    with answering(status, body) as url, pytest.raises(BadInputError, match=r"spec\.tracking\.uri"):
        open_run(TrackedRun(url, "tests", "tiny", "key"), "tiny", "{}")


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_is_busy_is_an_infrastructure_error(status: int) -> None:
    with answering(status, b"later") as url, pytest.raises(InfrastructureError):
        open_run(TrackedRun(url, "tests", "tiny", "key"), "tiny", "{}")


def test_what_is_no_database_is_bad_input(tmp_path: Path) -> None:
    """At once: MLflow by itself would try for minutes to open the folder."""
    (tmp_path / "file").write_text("no database" * 1000)
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadInputError, match=r"spec\.tracking\.uri"):
            open_run(TrackedRun(f"sqlite:///{path}", "tests", "tiny", "key"), "tiny", "{}")


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
