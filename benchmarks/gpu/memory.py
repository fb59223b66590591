"""Peaks of one real training step, by torch's allocator and by the driver, beside what `plan` says."""

import pickle
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.estimates import CASES, place
from benchmarks.gpu.recipes import build
from benchmarks.gpu.report import Report, free_memory, print_table

SECONDS = 12.0
"""What a case takes at least."""


def run(report: Report) -> None:
    """Measures every case that the device has room for."""
    for name in CASES:
        with report.case(name, SECONDS) as found:
            if "skipped" not in found:
                _measure(name, found, report)
    gigabytes = [
        {"case": name, **{k: v / 1e9 if v is not None else "" for k, v in f.items() if k.endswith("Bytes")}}
        for name, f in report.content["cases"].items()
    ]
    print_table(gigabytes)


def _measure(name: str, found: dict[str, Any], report: Report) -> None:
    planned = _estimate(report.path.parent / "estimates", name, report)
    if planned is None:
        report.skip(name, "its estimate was not ready in time")
        found["skipped"] = True
        return
    if "error" in planned:
        if planned["missing"]:
            raise ModuleNotFoundError(planned["error"], name=planned["missing"])
        raise RuntimeError(planned["error"])
    manifest = planned["manifest"]
    expected = planned["total"] - planned["absent"]
    cuda = report.device.type == "cuda"
    found |= {"settings": planned["settings"], "plannedBytes": planned["total"], "notLoadedBytes": planned["absent"]}
    found |= {"expectedBytes": expected, "plannedParts": planned["parts"]}
    if cuda and expected > 1.1 * torch.cuda.get_device_properties(report.device).total_memory:
        report.skip(name, f"{expected / 1e9:.0f} GB are expected, more than the device has")
        found["skipped"] = True
        return
    free_memory()
    before = torch.cuda.mem_get_info()[0] if cuda else 0
    distillation = build(manifest, CASES[name].networks(report.miniature), report.device)
    losses: dict[str, float] = {}
    for _ in range(2):  # Adam's moments come with the first
        losses = distillation.step().losses
    found["losses"] = losses
    if cuda:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        # The allocator gives nothing back by itself: what the driver misses now is the most it missed.
        found |= {"allocatedBytes": peak, "reservedBytes": torch.cuda.max_memory_reserved()}
        found |= {"driverBytes": before - torch.cuda.mem_get_info()[0], "ratio": peak / expected}


def _estimate(folder: Path, name: str, report: Report) -> dict[str, Any] | None:
    """What the side process says; None if that comes too late."""
    path = place(folder, name)
    while report.left > SECONDS or report.miniature:
        if path.exists():
            return dict(pickle.loads(path.read_bytes()))
        time.sleep(0.1)
    return None
