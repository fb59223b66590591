"""The generator as an MLflow model, from code: this file travels with the model and imports nothing of this project.

Input: a table with a row an image: `class_label` (integer) for class-conditional generators or `prompt` (text) for
text-to-image ones, and `seed` (integer), which may be left out of these.
Parameters: `seed`, that of the first row where the table has no such column, each further row's being one more;
`steps`, how many the generator takes.
Output: a table with a column `png`: the image as a PNG file in base64.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

MAX_SEED = 2**63 - 1


class GeneratorModel(PythonModel):  # type: ignore[misc]
    """One image a row, which depends on the row alone.

    Libraries choose their kernels by the size of a batch, and sum in another order: alone and in a batch an image may
    differ by rounding.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the pipeline."""
        from diffusers import DiffusionPipeline

        folder = Path(context.artifacts["pipeline"])
        index = json.loads((folder / "model_index.json").read_text())
        # Parts that a pipeline was saved without must be said to be absent (SD3 without T5).
        absent = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
        # A network that diffusers has no class for comes with its file, which is as much the model's own as this one.
        own_code = any(folder.glob("*/*.py"))
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=weights_dtype(folder), trust_remote_code=own_code, use_safetensors=True, **absent
        )
        self.use(pipeline, context.model_config or {})

    def use(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        """Takes a pipeline, and what it is called with."""
        import torch

        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.arguments = dict(arguments)

    @property
    def classes(self) -> int | None:
        """The number of class labels; None without any."""
        return None if self.takes_text else self.pipeline.unet.config.num_class_embeds

    @property
    def takes_text(self) -> bool:
        """Whether it draws from prompts."""
        return "tokenizer" in self.pipeline.components

    @property
    def steps(self) -> range:
        """The numbers of steps that it can take; the last is what it was trained for.

        Only the scheduler of several steps takes fewer of them at noise levels that the generator was trained at.
        """
        trained = int(self.arguments["num_inference_steps"])
        fewer = type(self.pipeline.scheduler).__name__ == "LCMScheduler"
        return range(1 if fewer else trained, trained + 1)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Makes an image for each row.

        Raises:
            MlflowException: something is missing, or not within its range, which the message names.
        """
        given = params or {}
        if "seed" not in model_input:
            first = _within("params.seed", given.get("seed") or 0, range(MAX_SEED - len(model_input) + 2))
            seeds = [first + row for row in range(len(model_input))]
        elif given.get("seed") is None:
            seeds = [_within("seed", seed, range(MAX_SEED + 1)) for seed in model_input["seed"]]
        else:
            raise _invalid("seed is both a column and in params: leave one out")
        steps = given.get("steps")
        images = self.draw(
            seeds,
            labels=self._labels(model_input),
            prompts=self._prompts(model_input),
            steps=None if steps is None else _within("params.steps", steps, self.steps),
        )
        return pd.DataFrame({"png": [_base64_png(image) for image in images]})

    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        steps: int | None = None,
    ) -> list[Any]:
        """Makes an image (PIL) for each seed, and its label or prompt."""
        import torch

        # Noise is drawn on the CPU, a generator a row, so that a row's image depends on its seed alone.
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments: dict[str, Any] = {**self.arguments, "generator": noise}
        if steps is not None:
            arguments["num_inference_steps"] = steps
        if prompts is None:
            arguments["batch_size"] = len(noise)
        else:
            arguments["prompt"] = list(prompts)
        if labels is not None:
            arguments["class_labels"] = list(labels)
        return list(self.pipeline(**arguments).images)

    def _labels(self, table: pd.DataFrame) -> list[int] | None:
        if self.classes is None:
            return None
        return [_within("class_label", label, range(self.classes)) for label in _column(table, "class_label")]

    def _prompts(self, table: pd.DataFrame) -> list[str] | None:
        return [str(prompt) for prompt in _column(table, "prompt")] if self.takes_text else None


def _column(table: pd.DataFrame, name: str) -> Any:
    if name not in table:
        raise _invalid(f"{name}: missing; this generator draws from it: give a column of that name")
    return table[name]


def _within(name: str, value: Any, valid: range) -> int:
    if isinstance(value, bool) or value != value or value != int(value) or int(value) not in valid:  # NaN is not itself
        raise _invalid(f"{name}: {value} is not an integer from {valid[0]} to {valid[-1]}")
    return int(value)


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def weights_dtype(folder: Path) -> Any:
    """The dtype of all weights: left to themselves, diffusers loads float32, and transformers what the files hold."""
    from safetensors import safe_open

    with safe_open(next(folder.glob("*/diffusion_pytorch_model*.safetensors")), "pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype


def _base64_png(image: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(GeneratorModel())
