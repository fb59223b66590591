"""`python -m benchmarks.gpu.estimates FOLDER miniature|whole`: what `plan` says of the memory cases, side by side."""

import dataclasses
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.recipes import Recipe
from dmd_trainer.planning.fitting import enough_settings
from dmd_trainer.planning.memory import count_sizes, estimate_memory

GIGABYTE = 10**9
LIMIT = 80 * GIGABYTE
FITTED = "SDXL, DMD2 with GAN, what plan suggests for 80 GB"
# Updates after the second need no more memory: two do.
CASES = {
    "SD 1.5, DMD, batch 32": Recipe("distill-sd15", "sd15"),
    "SDXL, DMD2 with GAN, LoRA": Recipe("distill-sdxl-dmd2-lora", "sdxl", fake_score_updates=2),
    "SD 1.5, DMD2 with GAN, batch 32": Recipe("distill-sd15-dmd2-phase2", "sd15", fake_score_updates=2),
    FITTED: Recipe("distill-sdxl-dmd2-four-steps", "sdxl", fake_score_updates=2),
    "SDXL, DMD2 with GAN, whole": Recipe("distill-sdxl-dmd2-four-steps", "sdxl", fake_score_updates=2),
}


def estimate(name: str, miniature: bool) -> dict[str, Any]:
    """The manifest that is measured, and the estimate of what is loaded of it."""
    torch.set_num_threads(1)
    recipe = CASES[name]
    manifest, architecture = recipe.manifest(miniature), recipe.networks(miniature)
    settings: list[str] = []
    if name == FITTED:
        found = enough_settings(manifest, architecture, 1 if miniature else LIMIT)
        settings, manifest, planned = found.settings, found.manifest, found.estimate
    else:
        planned = estimate_memory(manifest, architecture)
    # Neither text encoders nor VAE are loaded here: their bytes are what is frozen beside the teacher.
    sizes = count_sizes(manifest, architecture)
    narrow = 2 if manifest.spec.teacher.weights != "fp32" else 4
    upcast = architecture.decoder is not None and architecture.decoder.get("force_upcast", True)
    absent = sizes.decoder * (4 if upcast else narrow) + sizes.encoders * narrow
    return {
        "manifest": manifest,
        "settings": settings,
        "parts": dataclasses.asdict(planned),
        "total": planned.total,
        "absent": absent,
    }


def main() -> None:
    """Estimates every case in a process of its own."""
    folder, size = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.pickle"):
        old.unlink()
    miniature = size == "miniature"
    if miniature:
        for name in CASES:
            _keep(folder, name, _try(name, miniature))
        return
    workers = min(len(CASES), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, future in [(name, pool.submit(_try, name, miniature)) for name in CASES]:
            future.add_done_callback(lambda done, name=name: _keep(folder, name, done.result()))


def _try(name: str, miniature: bool) -> dict[str, Any]:
    try:
        return estimate(name, miniature)
    except Exception as error:  # its reader reports it
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return {"error": f"{type(error).__name__}: {error}", "missing": missing}


def _keep(folder: Path, name: str, found: dict[str, Any]) -> None:
    path = place(folder, name)
    path.with_suffix(".partial").write_bytes(pickle.dumps(found))
    path.with_suffix(".partial").replace(path)


def place(folder: Path, name: str) -> Path:
    """Where a case's estimate is left."""
    return folder / f"{list(CASES).index(name)}.pickle"


if __name__ == "__main__":
    main()
