"""`dmdctl sample`: images from a registered generator, or how fast it makes them."""

import base64
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dmd_api.errors import BadInputError
from dmd_api.paths import below
from dmd_trainer.evaluation.pictures import image_grid
from dmdctl.local.run import RUNS
from dmdctl.quiet import quiet_libraries

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def sample_model(
    model: str,
    out: Path,
    count: int,
    seed: int,
    class_labels: str | None,
    prompts: list[str] | None,
    tracking: str | None,
) -> None:
    """Draws `count` images and writes them as a grid.

    Raises:
        BadInputError: there is no such model, the labels or prompts do not fit it, or the picture cannot be written.
    """
    import pandas as pd

    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise BadInputError(f"--out {out}: must be a .png file in a folder that exists")
    quiet_libraries()
    loaded = _load(model, tracking)
    labels = _labels(class_labels)
    rows: dict[str, Any] = {"seed": range(seed, seed + count)}
    classes = loaded.classes
    if prompts and not loaded.takes_text:
        raise BadInputError(f"--prompt: {model} is not conditioned on text; leave it out")
    if classes is not None:
        labels = labels or list(range(classes))
        if max(labels) >= classes:
            raise BadInputError(f"--class-labels: {model} knows the labels 0 to {classes - 1}, not {max(labels)}")
        rows["class_label"] = [labels[i % len(labels)] for i in range(count)]
    elif loaded.takes_text:
        if not prompts:
            raise BadInputError(f"--prompt: missing; {model} draws from text: give one or more")
        rows["prompt"] = [prompts[i % len(prompts)] for i in range(count)]
    elif labels:
        raise BadInputError(f"--class-labels: {model} is not conditioned on classes; leave them out")
    console = Console()
    with console.status("drawing"):
        images = loaded.draw(pd.DataFrame(rows))
    image_grid(images, columns=len(labels) if labels and 4 <= len(labels) <= 20 else 10).save(out)
    console.print(f"{count} images: {out}", highlight=False)


def benchmark_model(model: str, batch_size: int, precision: str | None, tracking: str | None) -> None:
    """Measures how fast the generator draws, alone and in batches, and prints a table.

    Raises:
        BadInputError: there is no such model.
    """
    from dmd_trainer.evaluation.timing import measure_throughput

    on_gpu = torch.cuda.is_available()
    precision = precision or ("fp16" if on_gpu else "fp32")
    quiet_libraries()
    loaded = _load(model, tracking)
    pipeline = loaded.pipeline.to(PRECISIONS[precision])
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"{model} on {device}, {precision}", title_justify="left")
    for column in ("images at once", "ms a batch", "of that the sampler", "images/s"):
        table.add_column(column, justify="right")
    console = Console()
    with console.status("drawing"):
        for size in sorted({1, batch_size}):
            found = measure_throughput(pipeline, loaded.arguments, size)
            milliseconds = (f"{1000 * seconds:.1f}" for seconds in (found.whole, found.sampler))
            table.add_row(str(size), *milliseconds, f"{found.images_per_second:.1f}")
    console.print(table)


class _Generator:
    """The pyfunc's own class over a pipeline: the same code answers here and behind `mlflow models serve`.

    Unlike there, no code that comes with the model is run.
    """

    def __init__(self, pipeline: Path, arguments: dict[str, Any]) -> None:
        from mlflow.pyfunc.model import PythonModelContext

        from dmd_trainer.families.pipelines import load_pipeline
        from dmd_trainer.publishing.pyfunc import GeneratorModel

        self._model = GeneratorModel()
        self._context = PythonModelContext({"pipeline": str(pipeline)}, arguments)
        self._model.use(load_pipeline(pipeline), arguments)
        self.pipeline = parts = self._model.pipeline
        self.arguments = self._model.arguments
        self.takes_text = "tokenizer" in parts.components
        self.classes: int | None = None if self.takes_text else parts.unet.config.num_class_embeds

    def draw(self, rows: Any) -> torch.Tensor:
        """Images [N, C, H, W] in [-1, 1]."""
        from PIL import Image

        table = self._model.predict(self._context, rows)
        arrays = [np.asarray(Image.open(BytesIO(base64.b64decode(text)))) for text in table["png"]]
        stacked = torch.from_numpy(np.stack(arrays)).float() / 127.5 - 1
        return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def _load(model: str, tracking: str | None) -> _Generator:
    from dmd_trainer.publishing.export import call_arguments, exported_steps
    from dmd_trainer.runtime.sources import check_source

    folder = Path(model)
    if not model.startswith("models:/"):
        if not (folder / "model_index.json").exists():
            raise BadInputError(
                f"{model}: is no diffusers pipeline's folder; give one, or models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        from dmd_trainer.families.pipelines import read_index

        check_source(folder, model)
        return _Generator(folder, call_arguments(read_index(folder)["_class_name"], exported_steps(folder)))

    import mlflow
    import yaml
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    database = RUNS.absolute() / "mlflow.db"
    uri = tracking or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
    if uri == f"sqlite:///{database}" and not database.exists():
        raise BadInputError(f"{model}: no registry here ({database} is missing); give --tracking URI")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        local = Path(mlflow.artifacts.download_artifacts(model))
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(
            f"{model}: cannot be loaded from {uri} ({reason}); check the name and --tracking"
        ) from error
    check_source(local, model)
    flavor = yaml.safe_load((local / "MLmodel").read_text())["flavors"]["python_function"]
    if "pipeline" not in (flavor.get("artifacts") or {}):
        raise BadInputError(f"{model}: is not a generator that dmd-operator registered")
    pipeline = below(local, flavor["artifacts"]["pipeline"]["path"], f"{model}: MLmodel")
    return _Generator(pipeline, flavor.get("config") or {})


def _labels(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInputError(f"--class-labels {text}: must be integers with commas between them, e.g. 0,1,2") from error
    if min(labels) < 0:
        raise BadInputError(f"--class-labels {text}: labels are not negative")
    return labels
