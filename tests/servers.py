"""Real servers on free loopback ports: S3 (SeaweedFS) and MLflow; and a proxy that can play ill."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

from dmdctl.local.local_runner import free_port
from tests.stages import new_database

DEADLINE = 180.0
LOOPBACK = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"


@dataclass
class Server:
    """A server process and where it answers."""

    process: subprocess.Popen[bytes]
    url: str

    def stop(self) -> None:
        """Ends it at once: nothing that it keeps is needed any more but what it has answered for."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing listens on {port}: {log.read_text()[-2000:]}")


def start_s3(folder: Path, port: int) -> Server:
    """A SeaweedFS S3 server with one identity; its data lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    options = {"dir": folder, "ip": LOOPBACK, "ip.bind": LOOPBACK, "volume.max": 200, "filer": "true", "s3": "true"}
    options |= {"s3.port": port, "s3.config": folder / "s3.json", "master.volumeSizeLimitMB": 64}
    options |= {"master.telemetry": "false", "master.defaultReplication": "000"}
    for name in ("master", "volume", "filer"):
        options |= {f"{name}.port": free_port(), f"{name}.port.grpc": free_port()}
    options |= {"s3.port.grpc": free_port()}
    options |= {"s3.port.iceberg": 0, "s3.port.lance": 0}  # off: both have fixed ports otherwise
    log = folder / "weed.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("weed")), "server", *(f"-{k}={v}" for k, v in options.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    wait_for_port(port, process, log)
    return Server(process, f"http://{LOOPBACK}:{port}")


def start_mlflow(folder: Path, port: int, also_known_as: str = "", **environment: str) -> Server:
    """An MLflow tracking server on SQLite; it answers to `also_known_as`, a URL, where others know it by that."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "mlflow.log"
    store = new_database(folder)
    command = ["-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    names = ["localhost:*", f"{LOOPBACK}:*", *([also_known_as.removeprefix("http://")] if also_known_as else [])]
    command += ["--allowed-hosts", ",".join(names)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--backend-store-uri", store, "--artifacts-destination", str(folder / "files")],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Nobody asks for the server's jobs, whose processes cost as much as the server.
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                **environment,
            },
            start_new_session=True,
        )
    server = Server(process, f"http://{LOOPBACK}:{port}")
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return server
    server.stop()
    raise AssertionError(log.read_text()[-2000:])


@contextmanager
def failing_proxy(target: str, fails: Callable[[int], bool], port: int = 0) -> Iterator[tuple[str, list[int]]]:
    """A proxy that keeps the statuses of all its answers, and gives 503 where `fails`, told how many there were."""
    behind = target.removeprefix("http://")
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fails(len(statuses)):
                statuses.append(503)
                self._answer(503, {}, b"")
                return
            connection = HTTPConnection(behind, timeout=20)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            statuses.append(response.status)
            self._answer(response.status, dict(response.getheaders()), content)
            connection.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}", statuses
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def with_tls(target: str, certificate: Path, key: Path) -> Iterator[str]:
    """The same server behind TLS, as an ingress puts it there: its https:// URL."""
    host, _, port = target.removeprefix("http://").partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Front(BaseRequestHandler):
        def handle(self) -> None:
            try:
                outside = context.wrap_socket(self.request, server_side=True)
            except OSError:  # the client trusts no such certificate
                return
            with outside, socket.create_connection((host, int(port))) as inside:
                back = threading.Thread(target=_pass_on, args=(inside, outside), daemon=True)
                back.start()
                _pass_on(outside, inside)
                back.join()

    class Server(ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server((LOOPBACK, 0), Front) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://{LOOPBACK}:{server.server_address[1]}"
        server.shutdown()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
