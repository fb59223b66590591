"""URIs become local paths: no two of them share a folder, and of a hub's repository only what is needed is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmd_trainer.runtime import fetch
from dmd_trainer.runtime.fetch import local_path
from dmd_trainer.runtime.storage import FileStorage, Storage
from tests.trainer.fake_hub import hub


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
    with hub(REPOSITORIES) as (url, downloads):
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
