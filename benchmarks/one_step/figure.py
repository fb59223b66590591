"""FID against network evaluations at sampling, on logarithmic axes."""

from pathlib import Path
from typing import Any

import matplotlib

IMAGES = Path(__file__).parents[2] / "docs" / "images"
FILES = {"digits": "one-step.png", "glyphs": "one-step-glyphs.png"}


def plot(found: dict[str, list[dict[str, Any]]], task: str, folder: Path = IMAGES) -> None:
    """Draws the teacher's solvers as lines and the one-step generators as points (the mean, and each seed)."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, 4.6), layout="constrained")
    colours = iter(pyplot.get_cmap("tab10").colors)
    ranked = sorted(found.items(), key=lambda item: -item[1][0]["fid"])
    for name, rows in ranked:
        colour = next(colours)
        evaluations = [row["evaluations"] for row in rows]
        if len(rows) > 1:
            axes.plot(evaluations, [row["fid"] for row in rows], "o-", color=colour, markersize=4, label=name)
            continue
        axes.plot(evaluations, [rows[0]["fid"]], "D", color=colour, markersize=7, label=name)
        axes.plot(evaluations * len(rows[0]["fids"]), rows[0]["fids"], "_", color=colour, markersize=14)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations at sampling", ylabel=f"FID ({task} classifier)")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], labels=["1", "2", "5", "10", "20", "50", "100"])
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(folder / FILES[task], dpi=120)
    pyplot.close(figure)
