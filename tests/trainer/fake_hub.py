"""A hub on this machine, as far as huggingface_hub asks it for files: the real client's other side."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
TOKEN = "hf_token"


@contextmanager
def hub(
    repositories: Mapping[str, Mapping[str, str]], *, gated: Collection[str] = (), private: Collection[str] = ()
) -> Iterator[tuple[str, "Counter[str]"]]:
    """Yields its URL, and how often each file was downloaded.

    Args:
        repositories: the files of each, OWNER/NAME for a model and datasets/OWNER/NAME for a data set.
        gated: those whose files need `TOKEN`.
        private: those that are not there without `TOKEN`.
    """
    downloads: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            api = parts[0] == "api"
            parts = parts[1:] if api else parts
            if parts[0] == "models":
                parts = parts[1:]
            depth = 3 if parts[0] == "datasets" else 2
            name, (verb, *rest) = "/".join(parts[:depth]), parts[depth:] or ["info"]
            files = repositories.get(name)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if files is None or (name in private and not known):
                return self.send("", 401, {"X-Error-Code": "RepoNotFound"})
            if rest and rest[0] not in REVISIONS:
                return self.send("", 404, {"X-Error-Code": "RevisionNotFound"})
            if api and verb == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(text.encode()), "oid": blob(text)}
                    for file, text in files.items()
                ]
                return self.send(json.dumps(entries))
            if api:
                siblings = [{"rfilename": file} for file in files]
                return self.send(
                    json.dumps({"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings})
                )
            if name in gated and not known:
                return self.send("", 403, {"X-Error-Code": "GatedRepo"})
            file = "/".join(rest[1:])
            content = files.get(file)
            if content is None:
                return self.send("", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            if self.command == "GET":
                downloads[file] += 1
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
