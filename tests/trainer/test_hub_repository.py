"""A generator's repository on the hub, by its real client: made, written once, private where it has to be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dmd_api.errors import BadInputError, InfrastructureError, InterruptedRunError
from dmd_api.loading import parse_manifest
from dmd_api.spec import HubRepository
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, export_pipeline
from dmd_trainer.publishing.hub_repository import open_repository, upload
from dmd_trainer.stages.checks import check_publishing
from dmd_trainer.tracking import client
from tests.api.values import NO_REPOSITORY
from tests.conftest import MANIFEST
from tests.trainer.fake_hub import TOKEN, Written, hub

WANTED = HubRepository(repo="team/glyphs-onestep")


STRANGER = """
import sys
import torch
from diffusers import DiffusionPipeline

def picture(place, **which):
    pipeline = DiffusionPipeline.from_pretrained(place, **which)
    noise = torch.Generator().manual_seed(0)
    return pipeline(class_labels=3, num_inference_steps=1, generator=noise, output_type="np").images

repository, commit, folder = sys.argv[1:]
print("the same" if (picture(repository, revision=commit) == picture(folder)).all() else "another picture")
"""
"""Somebody else's program, that knows nothing of this project."""


def nothing() -> None:
    """Nobody wants it to stop."""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """A hub at which `TOKEN` may write as `team`."""
    written = Written()
    with hub({}, owner="team", written=written) as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which has a server of its own
        monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield written


@pytest.fixture(scope="module")
def pipeline(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported generator, with its card and picture."""
    teacher, folder = load_teacher(tiny_teacher), tmp_path_factory.mktemp("exported") / "pipeline"
    facts = CardFacts("glyphs", "file:///t", "DMD", "abc", "1.5", b"a picture", WANTED.repo)
    export_pipeline(teacher, teacher.denoiser.network.state_dict(), [999], folder, facts)
    return folder


def test_a_generator_is_published_once_and_others_load_it(written: Written, pipeline: Path, tmp_path: Path) -> None:
    open_repository(WANTED)
    assert (written.repositories, written.private) == ({WANTED.repo: {}}, {WANTED.repo})
    uri = upload(WANTED, pipeline, "version 1", nothing)
    assert uri == f"hf://{WANTED.repo}@{written.head(WANTED.repo)}"
    assert upload(WANTED, pipeline, "version 1 again", nothing) == uri
    assert written.commits == {WANTED.repo: ["version 1"]}
    there = written.repositories[WANTED.repo]
    assert there == {str(p.relative_to(pipeline)): p.read_bytes() for p in pipeline.rglob("*") if p.is_file()}
    assert f'from_pretrained("{WANTED.repo}"'.encode() in bytes(there["README.md"])

    environment = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", STRANGER, WANTED.repo, uri.rpartition("@")[2], str(pipeline)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout == "the same\n", done.stderr


def test_a_newer_generator_is_one_more_commit(written: Written, pipeline: Path, tmp_path: Path) -> None:
    first = upload(WANTED, pipeline, "version 1", nothing)
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\nother words")
    assert upload(WANTED, tmp_path, "version 2", nothing) != first
    assert written.commits == {WANTED.repo: ["version 1", "version 2"]}
    assert "model_index.json" in written.repositories[WANTED.repo]


@pytest.mark.parametrize("name", NO_REPOSITORY)
def test_names_that_manifests_may_not_have_are_refused_by_the_hub_s_client_too(name: str) -> None:
    with pytest.raises(HFValidationError):
        validate_repo_id(name)


def no_token(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    return WANTED


def nobodys_token(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    return WANTED


def others(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    written.repositories["others/model"] = {}
    return HubRepository(repo="others/model")


def public(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    HfApi().create_repo(WANTED.repo, private=False)
    return WANTED


def private(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    HfApi().create_repo(WANTED.repo, private=True)
    return HubRepository(repo=WANTED.repo, private=False)


def offline(written: Written, monkeypatch: pytest.MonkeyPatch) -> HubRepository:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return WANTED


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (no_token, "huggingFace.credentialsSecretRef (locally: HF_TOKEN)"),
        (nobodys_token, "spec.publish.huggingFace.repo: team/glyphs-onestep cannot be written to with this token"),
        (others, "spec.publish.huggingFace.repo: others/model cannot be written to with this token"),
        (public, "spec.publish.huggingFace.private: team/glyphs-onestep exists and is public; change that on the hub"),
        (private, "exists and is private; change that on the hub, set private to true, or choose another"),
        (offline, "spec.publish.huggingFace: HF_HUB_OFFLINE keeps the hub from being asked"),
    ],
)
def test_what_cannot_be_published_is_refused(
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    pipeline: Path,
    cause: Callable[[Written, pytest.MonkeyPatch], HubRepository],
    said: str,
) -> None:
    wanted = cause(written, monkeypatch)
    with pytest.raises(BadInputError) as refusal:
        open_repository(wanted)
    assert said in str(refusal.value)
    with pytest.raises(BadInputError):  # it may have become so after preflight
        upload(wanted, pipeline, "version 1", nothing)
    assert not written.commits


def test_a_card_that_the_hub_refuses_is_told(written: Written, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: s3://bucket/teacher\n---\n")
    with pytest.raises(BadInputError, match="base_model"):
        upload(WANTED, tmp_path, "version 1", nothing)


def test_a_card_that_the_hub_will_refuse_is_found_by_preflight(
    written: Written, tiny_teacher: Path, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(MANIFEST))
    content["spec"]["publish"] = {"huggingFace": {"repo": WANTED.repo}}
    spec = parse_manifest(content).spec
    check_publishing(spec, load_teacher(tiny_teacher))
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: our own\n---\n")
    with pytest.raises(BadInputError, match=r"spec.publish.huggingFace.repo: .*license.*our own"):
        check_publishing(spec, load_teacher(tmp_path / "teacher"))


def test_a_hub_that_is_away_is_asked_again(
    written: Written, pipeline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written.refusals = [503, 429]
    upload(WANTED, pipeline, "version 1", nothing)
    assert written.commits == {WANTED.repo: ["version 1"]}

    def stop() -> None:
        raise InterruptedRunError("told to stop")

    written.refusals = [503]
    (tmp_path / "README.md").write_text("other")
    with pytest.raises(InterruptedRunError):
        upload(WANTED, tmp_path, "version 2", stop)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="the hub does not answer"):
        open_repository(WANTED)
