"""`dmdctl sample` on a folder: the generator draws with the steps that it was trained for."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

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
