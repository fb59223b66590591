"""`dmdctl sample`: a generator draws with the steps that it was trained for, and runs nothing that came with it."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from dmd_api.errors import BadInputError
from dmd_trainer.families.architecture import known_architecture
from dmd_trainer.families.shrinking import save_shrunken_teacher
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, export_pipeline
from dmdctl.model.sample import sample_model
from tests.trainer.text_teachers import make_sd


@pytest.mark.parametrize(
    ("timesteps", "dtype"), [((999,), "float32"), ((999, 749, 499, 249), "float32"), ((999,), "float16")]
)
def test_a_folder_is_drawn_from_in_its_own_steps(
    timesteps: tuple[int, ...], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(make_sd(tmp_path / "sd"))
    folder = tmp_path / "generator"
    facts = CardFacts("x", "file:///t", "DMD2", "abc", "1")
    export_pipeline(teacher, teacher.trainable_network().state_dict(), timesteps, folder, facts, dtype=dtype)
    called: list[int] = []
    forward = UNet2DConditionModel.forward

    def counted(self: Any, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(int(timestep))
        return forward(self, sample, timestep, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    sample_model(str(folder), tmp_path / "grid.png", 1, 0, None, ["red apple"], None)
    assert called == list(timesteps)
    assert Image.open(tmp_path / "grid.png").size[0] > 0


def test_the_code_beside_a_networks_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shrunken_teacher(known_architecture("edm-cifar10"), tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    folder, marker = tmp_path / "generator", tmp_path / "it-was-run"
    facts = CardFacts("x", "file:///t", "DMD2", "abc", "1")
    export_pipeline(teacher, teacher.trainable_network().state_dict(), (999,), folder, facts)
    with (folder / "unet" / "song_unet.py").open("a") as file:
        file.write(f"\nfrom pathlib import Path\nPath({str(marker)!r}).touch()\n")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    sample_model(str(folder), tmp_path / "grid.png", 2, 0, "3", None, None)
    assert Image.open(tmp_path / "grid.png").size[0] > 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{flavors: {python_function: {artifacts: {pipeline: {path: /etc}}}}}", "not a path below a folder"),
        ("{flavors: {python_function: {artifacts: {pipeline: {path: artifacts/../../x}}}}}", "not a path below"),
        ("{flavors: {python_function: {artifacts: {pipeline: {path: 3}}}}}", "is not a generator"),
        ("{flavors: {sklearn: {pickled_model: model.pkl}}}", "is not a generator"),
        ("[1, 2", "MLmodel"),
        ("!!python/object/apply:os.system [exit]", "MLmodel"),
    ],
)
def test_a_registered_model_names_no_place_of_the_machine(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    (tmp_path / "MLmodel").write_text(content)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda model: str(tmp_path))
    with pytest.raises(BadInputError, match=message):
        sample_model("models:/x/1", tmp_path / "grid.png", 1, 0, None, None, "http://127.0.0.1:1")
