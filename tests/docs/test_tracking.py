"""What docs/tracking.md says of MLflow's pages and webhooks: a real server, seen in a real browser."""

import json
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue

import pytest
import torch
from cryptography.fernet import Fernet
from PIL import Image
from selenium.webdriver import Chrome

from dmd_api.loading import load_manifest
from dmd_trainer.evaluation.pictures import png
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, call_arguments, export_pipeline
from dmd_trainer.publishing.registry import RegistryEntry, register_generator, set_alias
from dmd_trainer.runtime.storage import FileStorage
from dmd_trainer.tracking.client import TrackedRun, mlflow_client
from dmd_trainer.tracking.tracker import Tracker
from dmdctl.local.local_runner import free_port
from tests.browser import browser
from tests.docs.typed import ROOT, blocks
from tests.operator.live import eventually
from tests.servers import start_mlflow

PAGE = ROOT / "docs" / "tracking.md"
ADDRESS, RECEIVER = "http://mlflow:5000", "https://deploy.example.com/champion"
NAME, SECRET = "one step & more", "a secret"
PICTURE = Image.new("RGB", (41, 23), "red")


@pytest.fixture(scope="module")
def run_page(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server that has a run with a registered generator, and the run's own."""
    folder = tmp_path_factory.mktemp("mlflow")
    settings = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    server = start_mlflow(folder / "server", free_port(), **settings)
    try:
        run = TrackedRun(server.url, "digits", "distill-digits", "key")
        with Tracker(run, folder / "spool", FileStorage(folder / "storage")) as tracker:
            tracker.log_manifest(load_manifest(ROOT / "examples" / "distill-digits.yaml"), torch.device("cpu"), 2)
            assert tracker.flush(60)
            page = tracker.run_url
        assert page is not None
        teacher = load_teacher(tiny_teacher)
        facts = CardFacts("tiny", "file:///t", "DMD", "abc", "1", png(PICTURE))
        export_pipeline(teacher, teacher.denoiser.network.state_dict(), [999], folder / "pipeline", facts)
        arguments = call_arguments("ConsistencyModelPipeline")
        register_generator(run, RegistryEntry(NAME, folder / "pipeline", arguments, "class_label", "sha"))
        yield server.url, page
    finally:
        server.stop()


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as running:
        yield running


def shows(driver: Chrome, *texts: str) -> Callable[[], bool]:
    """Whether the page has all the texts by now."""
    return lambda: all(text in driver.execute_script("return document.body.innerText") for text in texts)


def test_a_run_s_page_shows_where_it_comes_from(driver: Chrome, run_page: tuple[str, str]) -> None:
    driver.get(run_page[1])
    described = "builtin://digits-teacher distilled into a generator of 1 step"
    source = "DMDDistillation distill-digits"
    eventually(shows(driver, described, source, "digits-teacher", "dmd.devices", "2 x cpu"), "the run's page", 60)
    assert not shows(driver, "Observability")(), "it is the side of training runs, not of agents"


def test_a_version_s_page_shows_the_card_with_its_picture(driver: Chrome, run_page: tuple[str, str]) -> None:
    driver.get(f"{run_page[0]}/#/models/{NAME.replace('&', '%26')}/versions/1")
    eventually(shows(driver, "A one-step generator, distilled from", NAME), "the version's page", 60)
    pictures = "return [...document.images].map(image => [image.naturalWidth, image.naturalHeight])"
    eventually(lambda: list(PICTURE.size) in driver.execute_script(pictures), "the picture of the card", 20)


def test_a_webhook_tells_of_an_alias(run_page: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    create, receive = blocks(PAGE, "python")
    (promised,) = map(json.loads, blocks(PAGE, "json"))
    received: Queue[tuple[Message, bytes]] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
            there = create.replace(ADDRESS, run_page[0]).replace(RECEIVER, f"http://127.0.0.1:{receiver.server_port}")
            exec(compile(there, PAGE, "exec"), {})
            set_alias(run_page[0], NAME, "champion", "1")
            headers, body = received.get(timeout=60)
        finally:
            receiver.shutdown()
    told = json.loads(body)
    assert told["data"] == {"name": NAME, "alias": "champion", "version": "1"}
    assert promised | {"timestamp": "", "data": told["data"]} == told | {"timestamp": ""}
    assert promised["data"].keys() == told["data"].keys()
    check: dict[str, Callable[..., bool]] = {}
    exec(compile(receive, PAGE, "exec"), check)
    assert check["is_from_mlflow"](headers, body, SECRET)
    assert not check["is_from_mlflow"](headers, body + b" ", SECRET)
    (webhook,) = mlflow_client(run_page[0]).list_webhooks()
    assert webhook.name == "champion-moved"
