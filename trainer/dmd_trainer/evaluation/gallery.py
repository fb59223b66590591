"""The pictures that a finished run leaves in its storage and in MLflow."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image
from torch import Tensor

from dmd_trainer.evaluation.comparison import Comparison
from dmd_trainer.evaluation.grid import Grid, kept_steps, read_kept
from dmd_trainer.evaluation.pictures import curves_picture, image_grid, png, training_picture
from dmd_trainer.evaluation.report import Report
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.storage import Storage

GENERATOR_PICTURE = "samples/generator.png"
COLUMNS = 16
DIVISORS = (16, 8, 4, 2)

Rows = Sequence[Mapping[str, float]]


def leave_pictures(
    context: StageContext, grid: Grid, comparison: Comparison, report: Report, losses: Rows, evaluations: Rows
) -> None:
    """Draws grids of teacher and generator, the picture of the training, and its curves.

    Args:
        context: of rank 0.
        grid: draws the images.
        comparison: has the samplers.
        report: what was measured.
        losses: {"step": ..., loss: ...} rows.
        evaluations: {"step": ..., metric: ...} rows.
    """
    context.progress.update(activity="drawing pictures")
    of_teacher = grid.draw(comparison.teacher)
    pictures: dict[str, Callable[[], Image.Image]] = {
        "teacher.png": lambda: image_grid(of_teacher),
        "generator.png": lambda: image_grid(grid.draw(comparison.generator)),
        "training.png": lambda: _training_picture(context.storage, of_teacher[:COLUMNS], report),
        "curves.png": lambda: curves_picture(losses, evaluations, report.fid.teacher),
    }
    for name, draw in pictures.items():
        content = png(draw())
        context.storage.write(f"samples/{name}", content)
        if context.tracker is not None:
            context.tracker.log_artifact(content, f"pictures/{name}")


def _training_picture(storage: Storage, of_teacher: Tensor, report: Report) -> Image.Image:
    """The teacher's images [N, C, H, W] on top; below, the generator from start to end, evenly in the steps' log."""
    kept = kept_steps(storage)
    steps = sorted(kept)
    evenly = {min(steps, key=lambda step: abs(step - steps[-1] / divisor)) for divisor in DIVISORS}
    rows = {step: read_kept(storage, kept[step])[:COLUMNS] for step in sorted({steps[0], steps[-1]} | evenly)}
    teacher_nfe, nfe = report.network_evaluations.teacher, report.network_evaluations.generator
    title = (
        f"{report.name}: teacher ({teacher_nfe:.0f} network evaluations, FID {report.fid.teacher:.3g}) and "
        f"one-step generator ({nfe:.0f}, FID {report.fid.generator:.3g})"
    )
    return training_picture(of_teacher, rows, title)
