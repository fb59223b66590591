"""Storage on disk and on a real S3 server."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from botocore.exceptions import BotoCoreError, ClientError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dmd_api.errors import BadInputError, InfrastructureError
from dmd_trainer.runtime import storage as storage_module
from dmd_trainer.runtime.storage import KeyNotFoundError, Storage, open_storage
from dmdctl.local.local_runner import free_port
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, failing_proxy, start_s3

BUCKET = "models"


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"), free_port())
    yield server
    server.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


def make_bucket(url: str, name: str = BUCKET) -> None:
    client = storage_module._s3_client(url)
    until = time.monotonic() + 60
    while True:  # the filer may need a moment after the port is open
        try:
            client.create_bucket(Bucket=name)
        except (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


@pytest.fixture(params=["file", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/runs")
    url = request.getfixturevalue("s3_server").url
    make_bucket(url)
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}", endpoint_url=url)


def test_what_is_written_is_read_listed_and_deleted(storage: Storage, tmp_path: Path) -> None:
    assert storage.list() == []
    storage.write("a/b.json", b"one")
    storage.write("a/b.json", b"two")
    storage.write("a/c", b"")
    assert storage.read("a/b.json") == b"two"
    assert storage.list("a/") == ["a/b.json", "a/c"]
    assert storage.list("a/b") == ["a/b.json"]
    assert storage.sub("a").read("b.json") == b"two"
    assert storage.sub("a").uri_of("b.json") == storage.uri_of("a/b.json")
    assert storage.exists("a/c")
    assert not storage.exists("a/d")
    storage.delete("a/")
    storage.delete("a/")
    assert storage.list() == []
    with pytest.raises(KeyNotFoundError, match=r"a/b\.json"):
        storage.read("a/b.json")
    with pytest.raises(KeyNotFoundError):
        storage.download("a/b.json", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("key", ["../up", "/absolute", "a/../../up", "a//b", "./a", "a\\b", "a\0b", ""])
def test_a_key_that_leads_elsewhere_is_refused(storage: Storage, key: str, tmp_path: Path) -> None:
    actions: list[Callable[[], object]] = [
        lambda: storage.read(key),
        lambda: storage.write(key, b"x"),
        lambda: storage.upload(Path(__file__), key),
        lambda: storage.download(key, tmp_path / "copy"),
        lambda: storage.exists(key),
    ]
    for action in actions:
        with pytest.raises(BadInputError, match=r"segment|backslash") as caught:
            action()
        assert not isinstance(caught.value, KeyNotFoundError)


@pytest.mark.timeout(60)
def test_only_regular_files_of_the_folder_are_read(tmp_path: Path) -> None:
    whole = open_storage(f"file://{tmp_path}/runs")
    storage = whole.sub("run")
    storage.write("a/own", b"own")
    folder = tmp_path / "runs" / "run"
    (tmp_path / "secret").write_text("token")
    (folder / "report.json").symlink_to(tmp_path / "secret")
    (folder / "checkpoints").symlink_to(tmp_path)
    (folder / "link").symlink_to("a/own")
    os.mkfifo(folder / "history.json")
    for key in ("report.json", "checkpoints/secret", "history.json"):
        for action in (storage.read, storage.exists, lambda key: storage.download(key, tmp_path / "copy")):
            with pytest.raises(BadInputError, match="no regular file of the storage"):
                action(key)
        with pytest.raises(BadInputError, match="no regular file of the storage"):
            storage.write(key, b"x")
    assert (tmp_path / "secret").read_text() == "token"
    assert storage.read("link") == b"own"
    (tmp_path / "runs" / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(BadInputError, match="no regular file of the storage"):
        whole.sub("elsewhere").read("secret")


def test_of_weights_the_header_can_be_had_alone(storage: Storage, tmp_path: Path) -> None:
    whole = save({"a": torch.ones(100, 1000), "b": torch.ones(3)})
    storage.write("whole", whole)
    storage.write("truncated", whole[:-1])
    storage.write("other", b"GARBAGE" * 10)
    storage.write("empty", b"")
    copies = {key: tmp_path / "headers" / key for key in storage.list()}
    for key, path in copies.items():
        storage.download_header(key, path)
    assert [path.stat().st_size for path in copies.values()] == [0, 70, len(whole) - 1, len(whole)]
    assert copies["whole"].stat().st_blocks * 512 < len(whole) // 2, "a file that is mostly a hole"
    with safe_open(copies["whole"], framework="pt") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {"a": [100, 1000], "b": [3]}  # noqa: SIM118
    for key in ("truncated", "other", "empty"):
        with pytest.raises(SafetensorError):
            safe_open(copies[key], framework="pt")


def test_a_large_file_travels_in_parts(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "large"
    content = hashlib.shake_256(b"seed").digest(40 * 2**20 + 7)
    source.write_bytes(content)
    storage.upload(source, "large")
    storage.download("large", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == content


def test_s3_missing_bucket_and_wrong_credentials_are_bad_input(
    s3_server: Server, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="no bucket nowhere"):
        open_storage("s3://nowhere/x", endpoint_url=s3_server.url).read("key")
    make_bucket(s3_server.url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BadInputError, match="access denied") as caught:
        open_storage(f"s3://{BUCKET}", endpoint_url=s3_server.url).write("key", b"")
    assert "wrong" not in str(caught.value).replace("wrong-", "")


def test_s3_without_credentials_is_bad_input(
    s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(BadInputError, match="no credentials"):
        open_storage(f"s3://{BUCKET}", endpoint_url=s3_server.url).read("key")


def test_s3_answers_of_503_are_waited_out(s3_server: Server, credentials: None) -> None:
    make_bucket(s3_server.url)
    with failing_proxy(s3_server.url, lambda answered: answered < 5) as (url, statuses):
        storage = open_storage(f"s3://{BUCKET}/proxied", endpoint_url=url)
        storage.write("key", b"content")
        assert statuses.count(503) == 5
        assert open_storage(f"s3://{BUCKET}/proxied", endpoint_url=s3_server.url).read("key") == b"content"


def test_an_s3_server_that_comes_back_is_waited_for(s3_server: Server, credentials: None) -> None:
    make_bucket(s3_server.url)
    open_storage(f"s3://{BUCKET}/late", endpoint_url=s3_server.url).write("key", b"content")
    port, done = free_port(), threading.Event()

    def come_back() -> None:
        with failing_proxy(s3_server.url, lambda answered: False, port=port):
            done.wait(60)

    late = open_storage(f"s3://{BUCKET}/late", endpoint_url=f"http://127.0.0.1:{port}")
    coming = threading.Timer(2.0, come_back)
    coming.start()
    try:
        assert late.read("key") == b"content"
    finally:
        done.set()
        coming.join()


def test_an_s3_server_that_stays_away_is_an_infrastructure_error(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "OUTAGE_SECONDS", 0.5)
    with pytest.raises(InfrastructureError, match="does not answer"):
        open_storage("s3://x/y", endpoint_url=f"http://127.0.0.1:{free_port()}").read("key")


WRITER = """
import sys
from dmd_trainer.runtime.storage import open_storage
storage = open_storage(sys.argv[1])
while True:
    storage.write("object", bytes([65]) * 30_000_000)
    storage.write("object", bytes([66]) * 30_000_000)
    print("written", flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_object(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, f"file://{tmp_path}"], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
        writer.wait(20)
        storage = open_storage(f"file://{tmp_path}")
        content = storage.read("object")
        assert len(content) == 30_000_000
        assert set(content) in ({65}, {66})
        assert storage.list() == ["object"]


def test_an_unwritable_folder_is_bad_input_or_infrastructure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match="file"):
        open_storage(f"file://{tmp_path}/file").write("key", b"")
    with pytest.raises(BadInputError, match="ftp"):
        open_storage("ftp://host/x")
