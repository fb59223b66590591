"""`dmdctl sample`: images from a registered generator, or how fast it makes them."""

from pathlib import Path

import torch
from rich.table import Table

from dmd_api.errors import BadInputError
from dmd_trainer.evaluation.pictures import as_tensor, image_grid
from dmdctl.console import Console
from dmdctl.model.generator import Generator, find_generator
from dmdctl.verbosity import quiet_libraries

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
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise BadInputError(f"--out {out}: must be a .png file in a folder that exists")
    quiet_libraries()
    loaded = _load(model, tracking)
    labels = _labels(class_labels)
    drawn_labels = drawn_prompts = None
    classes = loaded.classes
    if prompts and not loaded.takes_text:
        raise BadInputError(f"--prompt: {model} is not conditioned on text; leave it out")
    if classes is not None:
        labels = labels or list(range(classes))
        if max(labels) >= classes:
            raise BadInputError(f"--class-labels: {model} knows the labels 0 to {classes - 1}, not {max(labels)}")
        drawn_labels = [labels[i % len(labels)] for i in range(count)]
    elif loaded.takes_text:
        if not prompts:
            raise BadInputError(f"--prompt: missing; {model} draws from text: give one or more")
        drawn_prompts = [prompts[i % len(prompts)] for i in range(count)]
    elif labels:
        raise BadInputError(f"--class-labels: {model} is not conditioned on classes; leave them out")
    console = Console()
    with console.spinner("drawing"):
        images = as_tensor(loaded.draw(range(seed, seed + count), drawn_labels, drawn_prompts))
    image_grid(images, columns=len(labels) if labels and 4 <= len(labels) <= 20 else 10).save(out)
    console.print_line(f"{count} images: {out}")


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
    with console.spinner("drawing"):
        for size in sorted({1, batch_size}):
            found = measure_throughput(pipeline, loaded.arguments, size)
            milliseconds = (f"{1000 * seconds:.1f}" for seconds in (found.whole, found.sampler))
            table.add_row(str(size), *milliseconds, f"{found.images_per_second:.1f}")
    console.print(table)


def _load(model: str, tracking: str | None) -> Generator:
    return Generator(find_generator(model, tracking))


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
