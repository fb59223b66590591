"""The table that sums up a finished run, and the commands to go on with."""

import shlex
import shutil
import sys

from rich.table import Table

from dmd_api.manifest import DMDDistillation
from dmd_trainer.evaluation.report import Report, ThreeWay
from dmd_trainer.runtime.storage import Storage
from dmdctl.console import Console, one_line


def show_summary(console: Console, report: Report, place: Storage, manifest: DMDDistillation) -> None:
    """Prints the table, the gates, the files and the commands to go on with."""
    title = one_line(f"{report.name}: {report.samples:,} samples, {report.features} features")
    table = Table(title=title, title_justify="left")
    for column in ("", "teacher", "untrained one-step", "distilled one-step"):
        table.add_column(column, justify="left" if not column else "right")
    rows: list[tuple[str, ThreeWay | None, str]] = [
        ("FID", report.fid, ".4f"),
        ("precision", report.precision, ".3f"),
        ("recall", report.recall, ".3f"),
        ("coverage", report.coverage, ".3f"),
        ("class accuracy", report.accuracy, ".2%"),
        ("CLIP score", report.clip_score, ".2f"),
    ]
    for label, values, style in rows:
        if values is not None:
            table.add_row(label, *(format(v, style) for v in (values.teacher, values.initial, values.generator)))
    nfe, seconds = report.network_evaluations, report.seconds_per_image
    table.add_row("network evaluations", f"{nfe.teacher:.0f}", f"{nfe.generator:.0f}", f"{nfe.generator:.0f}")
    generator = f"{1000 * seconds.generator:.3f}"
    table.add_row(one_line(f"ms an image ({report.device})"), f"{1000 * seconds.teacher:.3f}", generator, generator)
    console.aside().print()
    console.print(table)
    ratio, speed = report.fid.generator / report.fid.teacher, seconds.teacher / seconds.generator
    console.print_line(f"FID {ratio:.2f} times the teacher's, {speed:.0f} times faster")
    for gate in report.gates:
        bound = f"at most {gate.max:g}" if gate.max is not None else f"at least {gate.min:g}"
        mark = ("passed", "green") if gate.passed else ("failed", "red")
        console.print_line("gate ", mark, f": {gate.metric} {gate.value:.4g}, {bound}")
    if report.failed_gates:
        console.print_line(
            f"version {report.model_version} of {report.registered_model} is registered without the alias "
            f"{manifest.spec.tracking.alias}"
        )
    model = f"models:/{report.registered_model}" + (f"@{report.alias}" if report.alias else f"/{report.model_version}")
    uri = manifest.spec.tracking.uri
    model, tracking = shlex.quote(model), shlex.quote(uri or "")  # to be pasted into a shell
    # `uv tool install` and pipx put dmdctl on the PATH, and not what comes with its libraries.
    mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
    lines = [
        ("picture", place.uri_of("samples/training.png")),
        ("report", place.uri_of("report.json")),
        ("sample", f"dmdctl sample {model} --out grid.png --tracking {tracking}"),
        ("serve", f"MLFLOW_TRACKING_URI={tracking} {mlflow} models serve -m {model} --env-manager local -p 5001"),
    ]
    if report.published:
        lines.insert(2, ("hub", report.published))
    if uri and uri.startswith("sqlite:"):
        lines.insert(2, ("metrics", f"{mlflow} ui --backend-store-uri {tracking}"))
    hints = console.aside()
    hints.print()
    for label, value in lines:
        hints.print_line((f"{label:<8}", "bold"), f" {value.removeprefix('file://')}")
