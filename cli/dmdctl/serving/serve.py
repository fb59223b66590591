"""`dmdctl serve`: a page to draw with and an API, on one port"""

import logging
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.parsing import parse_json
from dmd_api.spec import Spec
from dmd_api.uris import masked, parse_uri
from dmd_trainer.runtime.fetch import local_path
from dmdctl.console import Console
from dmdctl.model.generator import Generator, manifest_of
from dmdctl.serving.app import Limits, Server, make_app
from dmdctl.serving.following import load
from dmdctl.serving.guard import LOOPBACK
from dmdctl.serving.samplers import TeacherSampler, TeacherSettings
from dmdctl.verbosity import is_quiet, quiet_libraries

TOKEN = "DMDCTL_SERVE_TOKEN"  # noqa: S105 - the variable's name
SHORTEST_TOKEN = 16
AT_HAND = ("builtin", "file")
"""The schemes of teachers that are drawn with unasked: nothing is downloaded for them."""
GRACE_SECONDS = 20
"""Requests that are being answered when the server is stopped have so long."""


@dataclass(frozen=True)
class Options:
    """The command's options, as `dmdctl serve --help` describes them."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    teacher: str | None = None
    guidance: float | None = None
    batch_size: int = 16
    queue: int = 64
    follow: float = 10
    tracking: str | None = None


def serve_model(model: str, options: Options) -> None:
    """Serves until it is interrupted.

    Raises:
        BadInputError: there is no such model or teacher, the address cannot be listened on, or it needs a token.
    """
    for library in ("MLFLOW", "HF_HUB"):
        os.environ.setdefault(f"{library}_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    token = _token(options)
    listening = _listen(options.host, options.port)
    quiet_libraries()
    console = Console()
    with console.spinner("loading the model"):
        sampler = load(model, options.tracking)
        teacher = _teacher(sampler.generator, options)
    server = Server(
        sampler, teacher, Limits(options.batch_size, options.queue), options.tracking, follow_seconds=options.follow
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("dmdctl.serve").setLevel(logging.WARNING if is_quiet() else logging.INFO)
    local = options.host in LOOPBACK and token is None
    app = make_app(server, token, hosts=LOOPBACK if local else None)
    address, port = listening.getsockname()[:2]
    at = f"[{address}]" if ":" in address else address
    console.print_line(
        f"{model}: http://{at}:{port}/" + ("" if token is None else " (any user name, the token as password)")
    )
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
    )
    uvicorn.Server(config).run(sockets=[listening])


def _token(options: Options) -> str | None:
    """The token, if there is one.

    Raises:
        BadInputError: it cannot be read, is too short, or is missing although others can reach the address.
    """
    token = os.environ.get(TOKEN)
    where = TOKEN
    if options.token_file is not None:
        where = f"--token-file {options.token_file}"
        try:
            token = options.token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{where}: cannot be read ({error}); name a text file") from error
    token = None if token is None else token.strip()
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise BadInputError(
            f"{where}: has {len(token)} characters, and anyone could guess it; use at least {SHORTEST_TOKEN}, such as "
            "those of openssl rand -hex 16"
        )
    if token is None and options.host not in LOOPBACK:
        raise BadInputError(
            f"--host {options.host}: others can reach it; set {TOKEN} or give --token-file, or listen on 127.0.0.1"
        )
    return token


def _listen(host: str, port: int) -> socket.socket:
    """The socket, before minutes are spent on loading.

    Raises:
        BadInputError: the address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except OSError as error:
        raise BadInputError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); name another one"
        ) from error


def _teacher(generator: Generator, options: Options) -> TeacherSampler | None:
    """The teacher that was asked for, or the one that a registered model was distilled from, if it is here.

    Raises:
        BadInputError: what was asked for cannot be loaded, or is another generator's.
    """
    if options.teacher == "none":
        return None
    spec, uri = _spec(generator, options.tracking), options.teacher
    if uri is None:
        if spec is None:
            return None
        parsed = parse_uri(spec.teacher.uri)
        if parsed.scheme not in AT_HAND or (parsed.scheme == "file" and not Path(parsed.path).exists()):
            return None
        uri = spec.teacher.uri
    settings = TeacherSettings()
    if spec is not None:
        labels = spec.data.class_labels
        settings = TeacherSettings(spec.teacher.guidance_scale, spec.method, None if labels is None else labels.count)
    if options.guidance is not None:
        settings = settings._replace(guidance=options.guidance)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(uri) if ":/" not in uri else local_path(uri, Path(scratch))
        if not folder.is_dir():
            raise BadInputError(masked(f"--teacher {uri}: is no pipeline's folder; give one, or its URI, or none"))
        return TeacherSampler(folder, settings, generator)


def _spec(generator: Generator, tracking: str | None) -> Spec | None:
    """What a registered model's run was asked for; None where that is not known, or is another release's manifest."""
    text = manifest_of(generator.found, tracking)
    try:
        return None if text is None else parse_manifest(parse_json(text, "manifest.json")).spec
    except BadInputError:
        return None
