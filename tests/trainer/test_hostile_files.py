"""What a manifest names is read and never run: one payload, in every format, through every field that takes a URI."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmd_api.errors import BadInputError, DMDError
from dmd_api.loading import parse_manifest
from dmd_api.spec import Location, Prompts, Regression, Spec
from dmd_api.stages import Stage
from dmd_trainer.conditions.prompts import read_prompts
from dmd_trainer.data.image_set import ImageSet
from dmd_trainer.dmd.regression import regression_loss
from dmd_trainer.evaluation.clip_score import load_clip_score
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.families.architecture import read_architecture
from dmd_trainer.families.autoencoder import Pixels
from dmd_trainer.families.initial_weights import read_initial_weights
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.publishing.export import CardFacts, export_pipeline
from dmd_trainer.publishing.registry import open_run
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.fetch import ASSETS, local_path
from dmd_trainer.runtime.storage import open_storage
from dmd_trainer.tracking.client import TrackedRun
from dmd_trainer.training.best import BestGenerator, load_best
from dmd_trainer.training.checkpoints import Checkpointer
from dmd_trainer.training.history import read_history
from dmdctl.model.sample import sample_model
from tests.conftest import MANIFEST
from tests.trainer.text_teachers import make_sd

CPU = torch.device("cpu")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What the payload touches; no test may leave it behind."""
    path = tmp_path / "it-was-run"
    yield path
    assert not path.exists(), "a payload was run"


def write_payloads(folder: Path, marker: Path) -> list[Path]:
    """The payload in files of all formats that carry pickles, by all names that readers go by."""
    state = {"features.0.weight": torch.zeros(1), "state_dict": Payload(marker)}
    array = np.array([Payload(marker)], dtype=object)
    writers: dict[str, Callable[[Path], object]] = {
        "plain": lambda path: path.write_bytes(pickle.dumps(state)),
        "torch": lambda path: torch.save(state, path),
        "old-torch": lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
        "numpy": lambda path: np.save(path.open("wb"), array, allow_pickle=True),
        "numpy-zip": lambda path: np.savez(path.open("wb"), latents=array),
    }
    suffixes = {
        "plain": ("pkl", "pth", "pt", "bin", "ckpt", "joblib", "npy", "parquet", "tar", "txt", "jsonl", "png", "db"),
        "torch": ("pth", "pt", "bin", "ckpt"),
        "old-torch": ("pth", "safetensors"),
        "numpy": ("npy", "safetensors", "pth"),
        "numpy-zip": ("npz", "pth"),
    }
    files = [folder / f"{how}.{suffix}" for how, names in suffixes.items() for suffix in names]
    folder.mkdir(parents=True)
    for file in files:
        writers[file.stem](file)
    return files


def poison(folder: Path, marker: Path) -> Path:
    """Puts the payload, and code that does the same, wherever a library may find it in a model's folder."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"
    (folder / "pipeline.py").write_text(code)
    for config in [*folder.rglob("*.json")]:
        if not isinstance(content := json.loads(config.read_text()), dict):
            continue
        (config.parent / "evil.py").write_text(code)
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
        config.write_text(json.dumps(content | {"auto_map": dict.fromkeys(classes, "evil.Evil")}))
    for weights in [*folder.rglob("*.safetensors")]:
        names = {"model": "pytorch_model"}
        torch.save({"x": Payload(marker)}, weights.with_name(f"{names.get(weights.stem, weights.stem)}.bin"))
        weights.unlink()
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd(tmp_path_factory.mktemp("teachers") / "sd")


def uri_fields(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all fields whose pattern asks for a scheme, or that are named as addresses."""
    for option in schema.get("anyOf", []):
        yield from uri_fields(option, definitions, path)
    if "$ref" in schema:
        yield from uri_fields(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    if ":/" in schema.get("pattern", "") or path.endswith(("uri", "Uri", "url", "Url")):
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from uri_fields(field, definitions, f"{path}.{name}".removeprefix("."))


def read_teacher(uri: str, scratch: Path) -> None:
    folder = local_path(uri, scratch)
    with suppress(BadInputError):
        read_architecture(folder)
    with suppress(BadInputError):
        TextEncoder(folder, CPU)
    load_teacher(folder)


def read_images(uri: str, scratch: Path) -> None:
    images = ImageSet(Location(uri=uri), "spec.data.images", scratch)
    images.read(range(len(images)), lambda picture: picture)


def read_features(uri: str, scratch: Path) -> None:
    load_features(Location(uri=uri), scratch, CPU)


def read_lpips(uri: str, scratch: Path) -> None:
    regression = Regression(pairs=1, loss="LPIPS", features=Location(uri=uri))
    regression_loss(regression, local_path(uri, scratch), CPU, Pixels())


def read_storage(uri: str, scratch: Path) -> None:
    storage = open_storage(uri)
    with suppress(DMDError):
        load_best(storage)
    context = StageContext(Stage.DISTILL, parse_manifest(MANIFEST), "run", 2, storage, storage, scratch=scratch)
    with suppress(DMDError):
        BestGenerator(storage)
    Checkpointer(context).load_newest({})
    read_history(storage)


READERS: dict[str, Callable[[str, Path], object]] = {
    "teacher.uri": read_teacher,
    "data.prompts.uri": lambda uri, scratch: read_prompts(Prompts(uri=uri), scratch),
    "data.images.uri": read_images,
    "method.initFrom.generator.uri": lambda uri, scratch: read_initial_weights(Location(uri=uri), "generator", scratch),
    "method.initFrom.fakeScore.uri": lambda uri, scratch: read_initial_weights(Location(uri=uri), "fakeScore", scratch),
    "method.regression.features.uri": read_lpips,
    "evaluation.reference.uri": read_images,
    "evaluation.prompts.uri": lambda uri, scratch: read_prompts(Prompts(uri=uri), scratch),
    "evaluation.clip.uri": lambda uri, scratch: load_clip_score(Location(uri=uri), scratch, CPU),
    "evaluation.features.uri": read_features,
    "storage.uri": read_storage,
    "tracking.uri": lambda uri, scratch: open_run(TrackedRun(uri, "tests", "n", "k"), "n", "{}"),
}
"""How a stage reads each field's URI."""
ADDRESSES = {"storage.endpointUrl"}
"""Fields that name a server: of its answers, keys and contents are read as those of any storage."""


def test_every_field_that_takes_a_uri_is_tried() -> None:
    schema = Spec.model_json_schema(by_alias=True)
    assert {*uri_fields(schema, schema["$defs"])} == READERS.keys() | ADDRESSES


@pytest.mark.parametrize("field", READERS)
def test_no_field_runs_what_it_names(field: str, sd: Path, tmp_path: Path, marker: Path) -> None:
    files = write_payloads(tmp_path / "files", marker)
    for model in (sd, ASSETS / "emoji-clip"):
        poison(shutil.copytree(model, tmp_path / "models" / model.name), marker)
    for number, file in enumerate(files):
        for name in (".metadata", "__0_0.distcp", "manifest.json"):
            copy(file, tmp_path / "run" / "checkpoints" / f"step-{number:06d}-attempt-1" / name)
    for name in ("generator/best.json", "history.json", "report.json", "pairs/shard-00000.safetensors"):
        copy(files[0], tmp_path / "run" / name)
    places = [*files, tmp_path / "files", tmp_path / "run", *(tmp_path / "models").iterdir()]
    for number, place in enumerate(places):
        with suppress(DMDError):  # anything else fails the test
            READERS[field](place.as_uri(), tmp_path / "scratch" / str(number))
        assert not marker.exists(), place


def copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def test_the_payload_would_run(tmp_path: Path) -> None:
    for file in write_payloads(tmp_path / "files", tmp_path / "marker"):
        (tmp_path / "marker").unlink(missing_ok=True)
        if file.stem.startswith("numpy"):
            found = np.load(file, allow_pickle=True)
            found = found["latents"] if file.suffix == ".npz" or file.stem == "numpy-zip" else found
        elif file.stem == "plain":
            pickle.loads(file.read_bytes())
        else:
            torch.load(file.rename(file.with_suffix(".pth")), weights_only=False)
        assert (tmp_path / "marker").exists(), file


PARTS = [
    {"unet": ["evil", "Evil"]},
    {"unet": ["subprocess", "Popen"]},
    {"tokenizer": ["tests.trainer.evil", "Evil"]},
    {"text_encoder": ["transformers", "RagTokenForGeneration"]},
    {"vae": ["diffusers", "DiffusionPipeline"]},
    {"scheduler": ["diffusers", "no_such"]},
    {"unet": ["diffusers"]},
    {"_class_name": ["pipeline", "Evil"]},
    {"_class_name": "AutoPipelineForText2Image"},
    {"_class_name": "utils"},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_no_class_or_code_of_a_folder_is_loaded(parts: dict[str, Any], sd: Path, tmp_path: Path, marker: Path) -> None:
    folder = shutil.copytree(sd, tmp_path / "sd")
    for place in ("", "unet"):
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"
        for name in ("pipeline.py", "evil.py", "subprocess.py"):
            (folder / place / name).write_text(code)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | parts))
    with pytest.raises(BadInputError, match=r"model_index\.json|is no pipeline|text models are"):
        TextEncoder(folder, CPU)
    with pytest.raises(BadInputError, match=r"model_index\.json|is no pipeline"):
        sample_model(str(folder), tmp_path / "grid.png", 1, 0, None, ["red apple"], None)


def outside(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.write_text("token")
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    return secret


HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "a link to a file": lambda folder, secret: (folder / "LICENSE").symlink_to(secret),
    "a relative link": lambda folder, secret: (folder / "unet" / "a.json").symlink_to("../../secret"),
    "a link to a folder": lambda folder, secret: (folder / "extra").symlink_to(secret.parent / "elsewhere"),
    "a link over a link": lambda folder, secret: (
        (folder / "b").symlink_to("LICENSE.txt"),
        (folder / "LICENSE.txt").symlink_to(secret),
    ),
    "a link to itself": lambda folder, secret: (folder / "circle").symlink_to("circle"),
    "a link to nothing": lambda folder, secret: (folder / "gone").symlink_to("nowhere"),
    "a device": lambda folder, secret: (folder / "NOTICE").symlink_to("/dev/zero"),
    "a pipe": lambda folder, secret: os.mkfifo(folder / "README.md"),
    "a pipe below": lambda folder, secret: os.mkfifo(folder / "unet" / "x.safetensors"),
    "an index that climbs": lambda folder, secret: (
        folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    ).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../../secret"}})),
    "an index of nothing": lambda folder, secret: (folder / "unet" / "x.bin.index.json").write_text("[]"),
    "an adapter of another model": lambda folder, secret: (folder / "unet" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(secret.parent / "elsewhere")})
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_folder_that_leads_out_of_itself_is_refused(what: str, tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (folder / "README.md").unlink(missing_ok=True)
    HOSTILE[what](folder, outside(tmp_path))
    with pytest.raises(BadInputError, match=r"file://.*(leads out|no regular file|names another|index)"):
        local_path(folder.as_uri(), tmp_path / "scratch")


def test_links_within_a_folder_are_taken(tiny_teacher: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts ConfigMaps, and as the hub's cache is laid out."""
    volume = tmp_path / "volume"
    (volume / "..2026").mkdir(parents=True)
    (volume / "..2026" / "prompts.txt").write_text("a tree\n")
    (volume / "..data").symlink_to("..2026")
    (volume / "prompts.txt").symlink_to("..data/prompts.txt")
    assert "a tree" in read_prompts(Prompts(uri=volume.as_uri()), tmp_path)
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = shutil.copytree(tiny_teacher, repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    (snapshot / "LICENSE").rename(repository / "blobs" / "abc") if (snapshot / "LICENSE").exists() else (
        repository / "blobs" / "abc"
    ).write_text("MIT")
    (snapshot / "LICENSE").symlink_to("../../blobs/abc")
    teacher = load_teacher(local_path(snapshot.as_uri(), tmp_path))
    export(teacher, tmp_path / "generator")
    assert (tmp_path / "generator" / "LICENSE").read_text() == "MIT"


def export(teacher: Any, folder: Path) -> None:
    facts = CardFacts("x", "file:///t", "DMD", "abc", "1")
    export_pipeline(teacher, teacher.trainable_network().state_dict(), [17], folder, facts)


def test_what_is_published_is_the_teachers_own(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    teacher = load_teacher(folder)
    (folder / "LICENSE").symlink_to(outside(tmp_path))
    (folder / "NOTICE").mkdir()
    export(teacher, tmp_path / "generator")
    assert not {"LICENSE", "NOTICE"} & {path.name for path in (tmp_path / "generator").iterdir()}


@pytest.mark.parametrize("uri", ["file:///dev/zero", "file:///dev/null"])
def test_a_device_is_no_source(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="neither a folder nor a regular file"):
        local_path(uri, tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "builtin://../../../etc/passwd",
        "pvc://claim/../other/secret",
        "pvc:///etc/passwd",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket/./b",
        "hf://owner/name@../../main",
        "s3://bucket/a\\..\\b",
        "builtin://digits\0",
    ],
)
def test_a_uri_that_climbs_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"segment|backslash"):
        local_path(uri, tmp_path)
    if uri.startswith(("s3", "pvc")):
        with pytest.raises(BadInputError, match=r"segment|backslash"):
            open_storage(uri)


@pytest.mark.parametrize("image", ["operator", "trainer"])
def test_an_image_takes_no_module_from_where_others_write(image: str, tmp_path: Path) -> None:
    """HOME, which a source's files lie in, and the working directory."""
    environment = (Path(__file__).parents[2] / "images" / image / "Dockerfile").read_text().rpartition("ENV ")[2]
    settings = dict(line.strip(" \\").split("=", 1) for line in environment.splitlines() if "=" in line)
    user = Path(sysconfig.get_path("purelib", f"{os.name}_user", {"userbase": str(tmp_path / ".local")}))
    user.mkdir(parents=True)
    for place in (user, tmp_path):
        (place / "dmd_hostile.py").write_text("")
    given = {"HOME": str(tmp_path)} | {k: v for k, v in settings.items() if k in ("PYTHONSAFEPATH", "PYTHONNOUSERSITE")}
    python = getattr(sys, "_base_executable", sys.executable)  # a virtual environment has no user's modules anyway
    for variables, expected in (({"HOME": str(tmp_path)}, 0), (given, 1)):
        command = [python, "-c", "import dmd_hostile"]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == expected
