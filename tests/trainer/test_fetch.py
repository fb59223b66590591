"""URIs become local paths: no two of them share a folder, and of a hub's repository only what is needed is taken."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from dmd_api.errors import BadInputError
from dmd_trainer.data.files import find_files
from dmd_trainer.runtime import fetch
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import FileStorage, Storage

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_two_folders_of_a_bucket_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is a folder: which local folder a URI gets is what is tested, not the server."""

    def opened(uri: str) -> Storage:
        return FileStorage(tmp_path / "bucket" / uri.removeprefix("s3://"))

    monkeypatch.setattr(fetch, "open_storage", opened)
    opened("s3://a/b_c").write("one", b"1")
    opened("s3://a/b/c").write("two", b"2")
    opened("s3://a/b").write("three", b"3")
    uris = ("s3://a/b_c", "s3://a/b/c", "s3://a/b", "s3://a/b/")
    found = [sorted(p.name for p in local_path(uri, tmp_path / "scratch").iterdir()) for uri in uris]
    assert found == [["one"], ["two"], ["c", "three"], ["c", "three"]]
    single = local_path("s3://a/b/c/two", tmp_path / "scratch")
    assert (single.name, single.read_bytes()) == ("two", b"2")


PIPELINE = {
    "model_index.json": json.dumps(
        {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": "0.36.0",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "safety_checker": [None, None],
            "requires_safety_checker": False,
        }
    ),
    "scheduler/scheduler_config.json": "{}",
    "unet/config.json": json.dumps({"_class_name": "UNet2DModel"}),
    "unet/diffusion_pytorch_model.safetensors": "the weights",
    "README.md": "license: mit",
    "LICENSE.md": "MIT",
}
NEEDLESS = {
    "unet/diffusion_pytorch_model.bin": "pickled",
    "unet/diffusion_pytorch_model.fp16.safetensors": "a variant",
    "unet/diffusion_pytorch_model.non_ema.safetensors": "another",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors": "the same in parts",
    "safety_checker/model.safetensors": "of a part that the pipeline leaves out",
    "unet/diffusion_flax_model.msgpack": "flax",
    "everything-in-one.ckpt": "pickled",
    "everything-in-one.safetensors": "all of it again",
    "samples/a.png": "a picture",
}
OTHER = {"a.parquet": "rows", "pytorch_model.bin": "weights", "images/a.png": "a picture"}
REPOSITORIES = {"owner/pipeline": PIPELINE | NEEDLESS, "owner/other": OTHER | {"tf_model.h5": "weights"}}


@contextmanager
def hub() -> Iterator[tuple[str, "Counter[str]"]]:
    """A hub with `REPOSITORIES`, as huggingface_hub asks it; yields its URL and how often each file was downloaded."""
    downloads: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                files = REPOSITORIES["/".join(parts[2:4])]
                if "tree" in parts:
                    entries = [
                        {"type": "file", "path": name, "size": len(text), "oid": blob(text)}
                        for name, text in files.items()
                    ]
                    return self.send(json.dumps(entries))
                siblings = [{"rfilename": name} for name in files]
                return self.send(json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}))
            name = "/".join(parts[4:])
            content = REPOSITORIES.get("/".join(parts[:2]), {}).get(name)
            if content is None:
                return self.send("", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            if self.command == "GET":
                downloads[name] += 1
            return self.send(content, 200, {"ETag": f'"{blob(content)}"', "X-Repo-Commit": COMMIT})

        def send(self, text: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = text.encode()
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    def blob(text: str) -> str:
        return hashlib.sha1(text.encode()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()


# A process of its own, since huggingface_hub reads its environment when it is imported; its threads take the locks that
# a node's ranks take.
RANKS = """
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from dmd_trainer.runtime.fetch import local_path

together = Barrier(2, timeout=60)

def rank(_):
    folders = []
    for uri in sys.argv[1:]:
        together.wait()
        folders.append(str(local_path(uri, Path())))
    return folders

with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(rank, range(2)))))
"""


def test_of_a_pipeline_what_diffusers_loads_is_downloaded_once_a_node(tmp_path: Path) -> None:
    uris = ["hf://owner/pipeline", "hf://owner/other@main"]
    with hub() as (url, downloads):
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", RANKS, *uris]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second
    for folder, expected in zip(map(Path, first), (PIPELINE, OTHER), strict=True):
        found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
        assert found == expected
    assert downloads == dict.fromkeys([*PIPELINE, *OTHER], 1)


@contextmanager
def bucket(*keys: str) -> Iterator[str]:
    """An S3 server that lists these keys, as a real one lists whatever was put there; yields its URL."""

    class Bucket(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"content")

        def do_GET(self) -> None:
            if "list-type" not in self.path:
                return self.answer(b"content")
            items = "".join(f"<Contents><Key>{escape(key)}</Key><Size>7</Size></Contents>" for key in keys)
            return self.answer(f"<ListBucketResult><Name>b</Name>{items}</ListBucketResult>".encode())

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def read_images(uri: str, scratch: Path) -> None:
    files = find_files(uri, scratch, lambda name: True)
    for key in files.keys:
        files.fetch(key)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")


@pytest.mark.parametrize("read", [local_path, read_images])
@pytest.mark.parametrize(
    "key", ["//absolute.png", "../up.png", "a/../../../up.png", "a//b.png", "./b.png", "a\\..\\b.png", "a/./b.png"]
)
def test_no_key_is_written_outside_its_folder(
    key: str, read: Callable[[str, Path], object], credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = key.replace("//absolute", f"/{tmp_path}/absolute")
    scratch = tmp_path / "scratch"
    with bucket("data/a.png", f"data/{key}") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(BadInputError, match=r"s3://b/data: .*(segment|backslash)"):
            read("s3://b/data", scratch)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_marks_a_folder_in_a_bucket_is_no_file(
    credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with bucket("data/", "data/a/", "data/a/b.png") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        folder = local_path("s3://b/data", tmp_path)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["a/b.png"]


def test_a_claim_is_not_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "CLAIMS", tmp_path / "claims")
    (tmp_path / "claims" / "mine").mkdir(parents=True)
    (tmp_path / "claims" / "other").mkdir()
    (tmp_path / "claims" / "mine" / "link").symlink_to("../other")
    (tmp_path / "claims" / "mine" / "data").mkdir()
    assert local_path("pvc://mine/data", tmp_path) == tmp_path / "claims" / "mine" / "data"
    with pytest.raises(BadInputError, match="leads out of the claim"):
        local_path("pvc://mine/link", tmp_path)
