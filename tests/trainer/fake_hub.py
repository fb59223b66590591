"""A hub on this machine, as far as huggingface_hub asks it for files and brings some: the real client's other side."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
TOKEN = "hf_token"
LICENCES = ("apache-2.0", "mit", "openrail++", "other")
LARGE = (".safetensors", ".png")
"""Endings of files that go through git-lfs there."""
Files = Mapping[str, str | bytes]


@dataclass
class Written:
    """What was written to a hub.

    Attributes:
        repositories: the files of each by its name, OWNER/NAME.
        private: the names of those that only `TOKEN` sees.
        commits: the messages of each one's commits, the first first.
        refusals: statuses that the next commits are answered with instead.
    """

    repositories: MutableMapping[str, dict[str, str | bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: dict[str, list[str]] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)

    def head(self, name: str) -> str:
        """The newest commit."""
        made = self.commits.get(name)
        return hashlib.sha1("\n".join(made).encode()).hexdigest() if made else COMMIT


@contextmanager
def hub(
    repositories: Mapping[str, Files],
    *,
    gated: Collection[str] = (),
    private: Collection[str] = (),
    owner: str | None = None,
    written: Written | None = None,
) -> Iterator[tuple[str, "Counter[str]"]]:
    """Yields its URL, and how often each file was downloaded.

    Args:
        repositories: the files of each, OWNER/NAME for a model and datasets/OWNER/NAME for a data set.
        gated: those whose files need `TOKEN`.
        private: those that are not there without `TOKEN`.
        owner: in whose name `TOKEN` may write; None: in nobody's.
        written: where what is written goes.
    """
    downloads: Counter[str] = Counter()
    kept = written if written is not None else Written()
    uploads: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.receive(unquote(urlsplit(self.path).path).strip("/"), body)

        def do_PUT(self) -> None:
            uploads[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send("")

        def known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            api = parts[0] == "api"
            parts = parts[1:] if api else parts
            if parts[0] == "models":
                parts = parts[1:]
            depth = 3 if parts[0] == "datasets" else 2
            name, (verb, *rest) = "/".join(parts[:depth]), parts[depth:] or ["info"]
            files: Files | None = kept.repositories.get(name, repositories.get(name))
            known = self.known()
            is_private = name in private or name in kept.private
            if files is None or (is_private and not known):
                return self.send("", 401, {"X-Error-Code": "RepoNotFound"})
            if verb == "auth-check":
                return self.send("", 200 if known and name.partition("/")[0] == owner else 403)
            head = kept.head(name)
            if rest and rest[0] not in (*REVISIONS, head):
                return self.send("", 404, {"X-Error-Code": "RevisionNotFound"})
            if api and verb == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(raw(content)), "oid": blob(content)}
                    for file, content in files.items()
                ]
                return self.send(json.dumps(entries))
            if api:
                siblings = [{"rfilename": file} for file in files]
                about = {"id": name.removeprefix("datasets/"), "sha": head, "private": is_private}
                return self.send(json.dumps({**about, "siblings": siblings}))
            if name in gated and not known:
                return self.send("", 403, {"X-Error-Code": "GatedRepo"})
            file = "/".join(rest[1:])
            content = files.get(file)
            if content is None:
                return self.send("", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": head})
            if self.command == "GET":
                downloads[file] += 1
            return self.send(content, 200, {"ETag": f'"{blob(content)}"', "X-Repo-Commit": head})

        def receive(self, path: str, body: bytes) -> None:
            if path == "api/validate-yaml":
                errors = wrong_fields(json.loads(body)["content"])
                return self.send(json.dumps({"errors": errors, "warnings": []}), 400 if errors else 200)
            if not self.known():
                return self.send("", 401)
            if path == "api/repos/create":
                return self.create(json.loads(body))
            name = "/".join(path.removeprefix("api/models/").split("/")[:2]).removesuffix(".git")
            files = kept.repositories.get(name)
            if name.partition("/")[0] != owner or files is None:
                return self.send("", 403)
            if "/preupload/" in path:
                found = [mode(file["path"], files.get(file["path"])) for file in json.loads(body)["files"]]
                return self.send(json.dumps({"files": found}))
            if path.endswith("info/lfs/objects/batch"):
                return self.send(json.dumps({"transfer": "basic", "objects": list(map(self.action, wanted(body)))}))
            if kept.refusals:
                return self.send("", kept.refusals.pop(0))
            return self.commit(name, files, body)

        def create(self, wanted: dict[str, Any]) -> None:
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != owner:
                return self.send("", 403)
            if name in kept.repositories:
                return self.send(json.dumps({"url": f"{url}/{name}", "error": "it exists"}), 409)
            kept.repositories[name] = {}
            if wanted["visibility"] == "private":
                kept.private.add(name)
            return self.send(json.dumps({"url": f"{url}/{name}"}))

        def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
            href = {"upload": {"href": f"{url}/lfs/{wanted['oid']}"}}
            return {"oid": wanted["oid"], "size": wanted["size"], "actions": href}

        def commit(self, name: str, files: dict[str, str | bytes], body: bytes) -> None:
            head, *operations = [json.loads(line) for line in body.splitlines()]
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "lfsFile":
                    files[value["path"]] = uploads[value["oid"]]
                else:
                    assert operation["key"] == "file", operation["key"]
                    files[value["path"]] = base64.b64decode(value["content"])
            kept.commits.setdefault(name, []).append(head["value"]["summary"])
            commit = kept.head(name)
            self.send(json.dumps({"commitUrl": f"{url}/{name}/commit/{commit}", "commitOid": commit}))

        def send(self, content: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = raw(content)
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url, downloads
    finally:
        server.shutdown()
        server.server_close()


def raw(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def blob(content: str | bytes) -> str:
    return hashlib.sha1(raw(content)).hexdigest()


def mode(path: str, there: str | bytes | None) -> dict[str, Any]:
    """How a file is brought, and what the repository has by its name: by git's hash, or git-lfs's."""
    large = path.endswith(LARGE)
    oid = None
    if there is not None:
        content = raw(there)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        oid = hashlib.sha256(content).hexdigest() if large else git
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def wanted(body: bytes) -> list[dict[str, Any]]:
    """The objects that a client of git-lfs asks about."""
    objects: list[dict[str, Any]] = json.loads(body)["objects"]
    return objects


def wrong_fields(card: str) -> list[dict[str, str]]:
    """What the hub refuses of a model card's fields."""
    fields = yaml.safe_load(card.split("---")[1])
    wrong = []
    base = fields.get("base_model")
    if base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) is None:
        wrong.append(f'"base_model" with value "{base}" is not valid. Use a model id from the hub.')
    if (licence := fields.get("license", "other")) not in LICENCES:
        wrong.append(f'"license" must be one of {LICENCES}, and is {licence}')
    return [{"message": message} for message in wrong]
