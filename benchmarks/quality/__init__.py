"""Whole distillations with three seeds, by `dmdctl run` as a user runs it: FID against the teacher's.

This one is of the digits, with more time than the example takes; `quality.glyphs` is of the glyphs, which takes longer.
"""

import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.digits import EXAMPLE
from benchmarks.runs import Runs

SEEDS = (0, 1, 2)
LIMIT = 2.0
PAIRS, UPDATES, EMA_DECAY = 24_576, 3_000, 0.999
MEASURES = ("fid", "recall", "precision", "coverage", "accuracy")


@dataclass(frozen=True)
class Run:
    """What makes a seed's run the same run.

    Attributes:
        name: of the last manifest.
        manifests: the first digits of the SHA-256 of all.
        seed: of every draw.
    """

    name: str
    manifests: str
    seed: int


def run() -> dict[str, Any]:
    """The digits' reports."""
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["spec"]["method"]["regression"]["pairs"] = PAIRS
    manifest["spec"]["training"] |= {"generatorUpdates": UPDATES, "emaDecay": EMA_DECAY}
    manifest["spec"]["evaluation"]["every"] = 500
    settings = {"pairs": PAIRS, "generatorUpdates": UPDATES, "emaDecay": EMA_DECAY}
    return settings | repeat([manifest], LIMIT)


def repeat(manifests: Sequence[dict[str, Any]], limit: float, runs: Runs | None = None) -> dict[str, Any]:
    """Runs `manifests` after each other with each seed, and prints and returns what the last one's reports say.

    Args:
        manifests: each may start from what the ones before it registered.
        limit: that the FID should not be above, in the teacher's.
        runs: where seeds are stored, and looked for before they are run. Default: all are run.
    """
    digest = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()[:12]
    found = []
    print("seed  teacher  initial one-step  ratio         accuracy minutes")
    for seed in SEEDS:
        run = Run(manifests[-1]["metadata"]["name"], digest, seed)
        distil = partial(_distil, manifests, seed)
        figures = distil() if runs is None else runs.get(run, distil)
        fid, accuracy = figures["fid"], figures["accuracy"]
        line = f"{seed:>4} {fid['teacher']:8.4f} {fid['initial']:8.4f} {fid['generator']:8.4f} {figures['ratio']:6.2f} "
        line += f"{accuracy['generator']:8.2%}/{accuracy['teacher']:.2%} {figures['minutes']:7.1f}"
        print(line, flush=True)
        found.append({"seed": seed} | figures)
    worst = max(entry["ratio"] for entry in found)
    print(f"worst ratio {worst:.2f}, at most {limit}")
    return {"seeds": found, "worstRatio": worst, "limit": limit}


def _distil(manifests: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The last report's measures, its FID in the teacher's, and the minutes of all."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for manifest in manifests:
            report = _report(manifest, seed, Path(folder))
        minutes = (time.perf_counter() - started) / 60
    ratio = report["fid"]["generator"] / report["fid"]["teacher"]
    return {"ratio": ratio, "minutes": minutes} | {key: report[key] for key in MEASURES if key in report}


def _report(manifest: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """A run's report; its files and its registry are in `folder`."""
    manifest = copy.deepcopy(manifest)
    manifest["spec"]["training"]["seed"] = seed
    file = folder / "manifest.yaml"
    file.write_text(yaml.safe_dump(manifest))
    subprocess.run(
        [str(Path(sys.executable).with_name("dmdctl")), "run", str(file)],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    newest = max(folder.glob("dmd-runs/*/report.json"), key=lambda p: p.stat().st_mtime)
    report: dict[str, Any] = json.loads(newest.read_text())
    return report
