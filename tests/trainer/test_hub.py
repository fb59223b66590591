"""Models and data sets of the hub, by its real client: paths and revisions, doors that are closed, and no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmd_api.errors import BadInputError, InfrastructureError
from dmd_trainer.runtime.hub import HubPath, _asking, hub_path
from tests.trainer.fake_hub import TOKEN, hub

PIPELINE = {
    "model_index.json": json.dumps({"unet": ["diffusers", "UNet2DModel"]}),
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.bin": "pickled",
    "notes/a.txt": "not loaded",
}
DATA = {
    "README.md": "about",
    "data/train/0.parquet": "rows",
    "data/train/1.parquet": "more rows",
    "data/test/0.parquet": "others",
    "data/prompts [1].txt": "red apple",
}
REPOSITORIES = {
    "o/pipeline": PIPELINE,
    "o/several": {f"half/{name}": text for name, text in PIPELINE.items()} | {"whole/model_index.json": "{}"},
    "o/gated": PIPELINE,
    "o/damaged": {"model_index.json": "{"},
    "datasets/o/data": DATA,
    "datasets/o/private": DATA,
}
# A process of its own, since huggingface_hub reads its environment when it is imported.
SCRIPT = """
import json
import sys
from pathlib import Path
from dmd_api.errors import DMDError
from dmd_trainer.runtime.fetch import local_path

def fetched(uri):
    try:
        path = local_path(uri, Path())
    except DMDError as error:
        return f"{type(error).__name__}: {error}"
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) or path.read_text()

print(json.dumps([fetched(uri) for uri in sys.argv[1:]]))
"""


def fetched(uris: list[str], home: Path, **environment: str) -> dict[str, list[str] | str]:
    """What each URI becomes: the names of its files, or a file's content, or the error."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables = kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment
    command = [sys.executable, "-c", SCRIPT, *uris]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(zip(uris, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_paths_revisions_and_closed_doors(tmp_path: Path) -> None:
    expected: dict[str, list[str] | str] = {
        "hf://o/pipeline": ["model_index.json", "unet/config.json"],
        "hf://o/several/half@v1": ["model_index.json", "unet/config.json"],
        "hf://datasets/o/data": sorted(DATA),
        "hf://datasets/o/data/data/train@main": ["0.parquet", "1.parquet"],
        "hf://datasets/o/data/data/prompts [1].txt": "red apple",
    }
    refused = {
        "hf://o/data": "no such model repository, or a private one; check the name (hf://datasets/OWNER/NAME",
        "hf://datasets/o/pipeline": "no such dataset repository",
        "hf://datasets/o/private": "or a private one",
        "hf://datasets/o/data/trian": "there is no trian in this repository",
        "hf://datasets/o/data@v2": "there is no revision v2",
        "hf://o/gated": "access is gated; accept its terms on the hub",
        "hf://o/damaged": "its model_index.json is damaged",
        "hf://o/two  spaces": "is no name of a repository",
        "hf://datasets": "write hf://",
    }
    with hub(REPOSITORIES, gated=["o/gated"], private=["datasets/o/private"]) as (url, downloads):
        online = fetched([*expected, *refused], tmp_path / "home", HF_ENDPOINT=url)
        assert {uri: online[uri] for uri in expected} == expected
        for uri, complaint in refused.items():
            assert online[uri].startswith(f"BadInputError: {uri}"), online[uri]  # type: ignore[union-attr]
            assert complaint in online[uri]
        assert set(downloads.values()) <= {1, 2}, "nothing is downloaded again"
        doors = fetched(["hf://o/gated", "hf://datasets/o/private"], tmp_path / "open", HF_ENDPOINT=url, HF_TOKEN=TOKEN)
        assert list(doors.values()) == [["model_index.json", "unet/config.json"], sorted(DATA)]
    # The hub is gone now; what is in the cache is read all the same, and only what is not is waited for.
    offline = fetched([*expected, "hf://o/gated"], tmp_path / "home", HF_ENDPOINT=url, HF_HUB_OFFLINE="1")
    assert {uri: offline[uri] for uri in expected} == expected
    assert "is not in the hub's cache, and HF_HUB_OFFLINE" in offline["hf://o/gated"]
    away = fetched(["hf://o/pipeline"], tmp_path / "home", HF_ENDPOINT=url)
    assert away["hf://o/pipeline"] == expected["hf://o/pipeline"]


def test_a_hub_that_is_away_is_waited_for() -> None:
    """Its client's own retries take half a minute."""
    complaint = r"hf://o/n: the hub does not answer \(refused\); is there a network"
    with pytest.raises(InfrastructureError, match=complaint), _asking(hub_path("o/n")):
        raise ConnectionError("refused\nby a machine")


def test_what_a_uri_of_the_hub_names() -> None:
    assert hub_path("gpt2") == HubPath("hf://gpt2", "model", "gpt2", "", None)
    assert hub_path("o/n/") == HubPath("hf://o/n/", "model", "o/n", "", None)
    assert hub_path("datasets/o/n/a/b@refs/convert/parquet") == HubPath(
        "hf://datasets/o/n/a/b@refs/convert/parquet", "dataset", "o/n", "a/b", "refs/convert/parquet"
    )
    for path in ("datasets/", "o//n", "o/n/../secret", "datasets/o/n/./a", "/o/n"):
        with pytest.raises(BadInputError, match=r"write hf://\[datasets/\]OWNER/NAME\[/PATH\]\[@REVISION\]"):
            hub_path(path)
