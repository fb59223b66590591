"""The generator as an MLflow model, from code: this file travels with the model and imports nothing of this project.

Input: a table with a row an image: `seed` (integer), and `class_label` (integer) for class-conditional generators or
`prompt` (text) for text-to-image ones.
Output: a table with a column `png`: the image as a PNG file in base64.
"""

import base64
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class GeneratorModel(PythonModel):  # type: ignore[misc]
    """One image a row; the same seed and label give the same image, alone or in a batch."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the pipeline."""
        from diffusers import DiffusionPipeline

        folder = Path(context.artifacts["pipeline"])
        index = json.loads((folder / "model_index.json").read_text())
        # Parts that a pipeline was saved without must be said to be absent (SD3 without T5).
        absent = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
        # A network that diffusers has no class for comes with its file, which is as much the model's own as this one.
        own_code = any(folder.glob("*/*.py"))
        self.use(
            DiffusionPipeline.from_pretrained(folder, trust_remote_code=own_code, use_safetensors=True, **absent),
            context.model_config or {},
        )

    def use(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        """Takes a pipeline, and what it is called with."""
        import torch

        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.arguments = dict(arguments)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Makes an image for each row."""
        import torch

        # Noise is drawn on the CPU, a generator a row, so that a row's image depends on its seed alone.
        noise = [torch.Generator("cpu").manual_seed(int(seed)) for seed in model_input["seed"]]
        arguments = {**self.arguments, "generator": noise}
        if "prompt" in model_input:
            arguments["prompt"] = [str(prompt) for prompt in model_input["prompt"]]
        else:
            arguments["batch_size"] = len(noise)
        if "class_label" in model_input and self.pipeline.unet.config.num_class_embeds is not None:
            arguments["class_labels"] = [int(label) for label in model_input["class_label"]]
        images = self.pipeline(**arguments).images
        return pd.DataFrame({"png": [_base64_png(image) for image in images]})


def _base64_png(image: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(GeneratorModel())
