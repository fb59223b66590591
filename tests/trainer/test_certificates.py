"""A company's certificate authority: S3, MLflow and the hub behind TLS, each by its real client."""

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import StageResult
from dmd_api.stages import Stage
from dmd_trainer.runtime import launcher
from dmd_trainer.runtime.certificates import VARIABLES, trust_bundle
from dmd_trainer.runtime.hub import _asking, hub_path
from dmdctl.local.local_runner import free_port
from tests.cluster.certificates import Authority
from tests.servers import ACCESS_KEY, LOOPBACK, SECRET_KEY, start_mlflow, start_s3, with_tls
from tests.trainer.fake_hub import hub

REMEDY = "its certificate is not trusted; give its authority's in spec.caBundle"
# A process of its own, since clients read their environment when they are imported.
SCRIPT = """
import json
import sys
from pathlib import Path
from dmd_api.errors import DMDError
from dmd_trainer.runtime.certificates import trust_bundle
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import _s3_client, open_storage
from dmd_trainer.tracking.client import ask, mlflow_client

folder, s3, mlflow, *names = sys.argv[1:]
trust_bundle(Path(folder))

def stored():
    storage = open_storage("s3://models", endpoint_url=s3)
    storage.exists("nothing")
    _s3_client(s3).create_bucket(Bucket="models")
    storage.write("key", b"value")
    return storage.read("key").decode()

def outcome(action):
    try:
        return action()
    except DMDError as error:
        return f"{type(error).__name__}: {error}"

actions = {
    "s3": stored,
    "mlflow": lambda: ask(mlflow, lambda: mlflow_client(mlflow).get_experiment_by_name("Default").name),
    "hub": lambda: local_path("hf://o/n/notes.txt", Path()).read_text(),
}
print(json.dumps({name: outcome(actions[name]) for name in names}))
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def places(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URLs of all three."""
    folder = tmp_path_factory.mktemp("servers")
    certificate = authority.sign("server", "server", hosts=(LOOPBACK,))
    with ExitStack() as stack:
        s3, mlflow = start_s3(folder / "s3", free_port()), start_mlflow(folder / "mlflow", free_port())
        stack.callback(s3.stop)
        stack.callback(mlflow.stop)
        there, _ = stack.enter_context(hub({"o/n": {"notes.txt": "hello"}}))
        urls = {"s3": s3.url, "mlflow": mlflow.url, "hub": there}
        yield {name: stack.enter_context(with_tls(url, *certificate)) for name, url in urls.items()}


def asked(places: dict[str, str], folder: Path, *names: str, **environment: str) -> dict[str, str]:
    """What each of these servers gives, or the error."""
    mine = {key: value for key, value in os.environ.items() if key not in VARIABLES and not key.startswith("HF_")}
    mine |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    mine |= {"HF_HOME": str(folder / "hub"), "HF_ENDPOINT": places["hub"], "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), places["s3"], places["mlflow"], *names]
    done = subprocess.run(command, env=mine | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_every_client_trusts_the_bundle(places: dict[str, str], authority: Authority, tmp_path: Path) -> None:
    answers = asked(places, tmp_path, *places, **{runtime.CA_BUNDLE: str(authority.certificate)})
    assert answers == {"s3": "value", "mlflow": "Default", "hub": "hello"}
    for variable in VARIABLES:
        context = ssl.create_default_context(cafile=tmp_path / f"{variable}.pem")
        assert context.cert_store_stats()["x509_ca"] > 50, "the public ones are trusted still"


def test_without_it_the_remedy_is_named_at_once(places: dict[str, str], tmp_path: Path) -> None:
    for place, answer in asked(places, tmp_path, "s3", "mlflow").items():
        assert answer.startswith("BadInputError: "), (place, answer)
        assert REMEDY in answer, place
    # The hub's client tries again for a while itself.
    with pytest.raises(BadInputError, match=REMEDY), _asking(hub_path("o/n")):
        urllib.request.urlopen(places["hub"], timeout=20)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What workers that the launcher starts, in this process, would trust, by variable; none are started."""
    seen: list[dict[str, str]] = []

    def launch(stage: Stage, results: Path) -> StageResult:
        seen.append({name: Path(os.environ[name]).read_text() for name in VARIABLES})
        return StageResult(stage=stage)

    monkeypatch.setattr(launcher, "_launch", launch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for variable in (*VARIABLES, launcher.RESULTS):  # set, so that they are put back
        monkeypatch.setenv(variable, "")
    return seen


def test_workers_trust_the_bundle_and_what_was_trusted_before(
    launched: list[dict[str, str]], authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other").certificate
    monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
    monkeypatch.setenv(runtime.CA_BUNDLE, str(authority.certificate))
    assert launcher.main(Stage.PREFLIGHT) == ExitCode.DONE
    (trusted,) = launched
    assert all(authority.certificate.read_text() in files for files in trusted.values())
    assert trusted["AWS_CA_BUNDLE"].startswith(other.read_text())
    assert len(trusted["AWS_CA_BUNDLE"]) < 4000, "whoever named another authority wanted no public ones"


def test_a_folder_of_authorities_cannot_be_added_to(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    monkeypatch.setenv(runtime.CA_BUNDLE, str(authority.certificate))
    with pytest.raises(BadInputError, match=r"SSL_CERT_FILE: .* is no file; spec\.caBundle is added to a file"):
        trust_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None])
def test_a_bundle_without_certificates_ends_the_stage(
    content: bytes | None, launched: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, termination = tmp_path / "ca.crt", tmp_path / "termination"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv(runtime.CA_BUNDLE, str(bundle))
    monkeypatch.setenv(runtime.TERMINATION_LOG, str(termination))
    assert launcher.main(Stage.PREFLIGHT) == ExitCode.BAD_INPUT
    assert not launched
    error = StageResult.model_validate_json(termination.read_text()).error
    assert error is not None
    assert error.message.startswith(f"spec.caBundle: {bundle} is no file of certificates in PEM")
