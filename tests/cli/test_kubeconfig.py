"""`--kubeconfig`: overrides `KUBECONFIG` as kubectl's does, and a file that cannot be used is named with a remedy."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmd_api.exit_codes import ExitCode
from tests.cli.test_watch import once

RUN = {"metadata": {"name": "mine", "namespace": "team"}, "spec": {}}
TABLE = {
    "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Phase", "priority": 0}],
    "rows": [{"cells": ["mine", "Distilling"], "object": RUN}],
}
COMMANDS = (
    ("watch", "mine"),
    ("list",),
    ("get", "mine"),
    ("suspend", "mine"),
    ("resume", "mine"),
    ("delete", "mine", "--yes"),
    ("logs", "mine"),
)


class Answers(BaseHTTPRequestHandler):
    """An API server that has one run, and remembers what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path.partition("?")[0])
        as_table = "as=Table" in self.headers["Accept"]
        body = json.dumps(TABLE if as_table else {"kind": "List", "items": [RUN]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def answering() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_kubeconfig(file: Path, server: str, namespace: str) -> Path:
    context = {"cluster": "it", "user": "me", "namespace": namespace}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "there", "context": context}],
        "current-context": "there",
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_it_overrides_the_environment(tmp_path: Path) -> None:
    with answering() as (address, asked), answering() as (other, asked_other):
        named = write_kubeconfig(tmp_path / "named", address, "team")
        environment = write_kubeconfig(tmp_path / "environment", other, "default")
        done = once(environment, "get", "mine", "--kubeconfig", str(named), folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert yaml.safe_load(done.stdout) == RUN
    assert asked == [f"/apis/{GROUP}/{VERSION}/namespaces/team/{PLURAL}"], "and the context's namespace is taken"
    assert asked_other == []


def test_a_context_is_looked_for_in_it(tmp_path: Path) -> None:
    with answering() as (address, asked):
        named = write_kubeconfig(tmp_path / "named", address, "team")
        there = ("get", "mine", "--kubeconfig", str(named), "--context", "there")
        assert once(tmp_path / "none", *there, folder=tmp_path).returncode == ExitCode.DONE
        done = once(tmp_path / "none", *there[:-1], "elsewhere", folder=tmp_path)
    assert len(asked) == 1
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"--context elsewhere: no such context in {named}; there is there" in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_for_a_cluster_has_it(command: tuple[str, ...], tmp_path: Path) -> None:
    with answering() as (address, asked):
        environment = write_kubeconfig(tmp_path / "environment", address, "team")
        done = once(environment, *command, "--kubeconfig", "missing", folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert "--kubeconfig missing: no such file; name one kubeconfig" in done.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (Is a directory); name a kubeconfig"),
        ("", "cannot be used as a kubeconfig"),
        ("a: [", "cannot be used as a kubeconfig"),
        ("[]", "cannot be used as a kubeconfig"),
    ],
    ids=("folder", "empty", "no YAML", "a list"),
)
def test_one_that_cannot_be_used_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    for further in ((), ("--context", "there")):
        done = once(tmp_path / "none", "list", "--kubeconfig", str(file), *further, folder=tmp_path)
        assert done.returncode == ExitCode.BAD_INPUT
        assert str(file) in done.stderr
        if not further or content is None:
            assert f"{file}: {said}" in done.stderr
