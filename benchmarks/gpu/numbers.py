"""The digits distillation on the device beside the CPU, beside itself resumed, and beside its narrower variants."""

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.digits import differences, digits_on, digits_pairs, kept, update_from
from benchmarks.gpu.report import Report, print_table
from benchmarks.gpu.resume import RESUMED, STATE, deterministic
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.dmd.distillation import Distillation

STEPS = (0, 50, 200)
CURVE = 50
CURVE_TOLERANCE = 0.05
"""Of the mean losses over the curve's second half: single steps of two trainings drift apart."""
EXACT = {"losses": 1e-4, "matchingLoss": 1e-3, "gradientNorms": 1e-4, "gradients": 1e-3, "weights": 1e-4, "x0": 1e-5}
"""Two devices, both in float32."""
SAME = dict.fromkeys(EXACT, 1e-6)
# The matching loss of narrow weights is reported, and not judged: see `differences`.
BF16 = {"losses": 0.1, "gradientNorms": 0.1, "gradients": 0.15, "weights": 0.01, "x0": 0.02}
FP8 = {"losses": 0.3, "gradientNorms": 0.3, "gradients": 0.3, "weights": 0.01, "x0": 0.1}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "bf16": ({"precision": "bf16"}, BF16),
    "fp8 teacher": ({"weights": "fp8"}, FP8),
    "offloaded teacher": ({"offload": True}, SAME),
    "channels-last": ({"channels_last": True}, EXACT),
    "compiled": ({"compile": True}, EXACT),
}
NEEDED = {"compiled": 15.0}
"""Seconds without which a variant is not begun; others need a few."""


def run(report: Report) -> None:
    """Compares everything with plain float32."""
    steps = (0, 1, 2) if report.miniature else STEPS
    states: dict[int, dict[str, Any]] = {}
    curve: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = digits_pairs(folder)
        with report.case("training", always=True) as found:
            distillation = digits_on(report.device, pairs)
            for step in range(steps[-1] + 1):
                if step in steps:
                    states[step] = kept(distillation)
                if step < steps[-1]:
                    curve.append(distillation.step().losses)
            found["curve"] = curve
        rows: list[dict[str, Any]] = []
        for step in steps:
            with report.case(f"against the CPU, step {step}", 2) as found:
                if "skipped" not in found:
                    plain = update_from(digits_on(report.device, pairs), states[step], step)
                    reference = update_from(digits_on(torch.device("cpu"), pairs), states[step], step)
                    _judge(report, f"step {step}, against the CPU", differences(plain, reference), EXACT, found, rows)
        with report.case("killed and resumed", 10) as found:
            if "skipped" not in found:
                _resume(report, pairs, folder, found)
        for variant, (options, tolerance) in VARIANTS.items():
            if variant == "compiled":
                with report.case("curve against the CPU", 12) as found:
                    if "skipped" not in found:
                        _curve(report, pairs, curve, found)
            if variant == "compiled" and report.device.type == "cpu":
                report.skip(variant, "on a GPU only: compiling takes minutes of a CPU")
                continue
            with report.case(variant, NEEDED.get(variant, 3.0)) as found:
                if "skipped" not in found:
                    step = steps[1]
                    plain = update_from(digits_on(report.device, pairs), states[step], step)
                    other = update_from(digits_on(report.device, pairs, **options), states[step], step)
                    _judge(report, variant, differences(other, plain), tolerance, found, rows)
        print_table(rows)


def _judge(
    report: Report,
    name: str,
    measured: dict[str, float],
    tolerance: dict[str, float],
    found: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    good = all(measured[key] <= limit for key, limit in tolerance.items())
    found |= {"differences": measured, "tolerances": tolerance, "passed": good}
    rows.append({"against plain float32": name, **measured, "": "passed" if good else "FAILED"})
    if not good:
        report.fail(f"{name}: tolerance", ", ".join(k for k, v in tolerance.items() if not measured[k] <= v), measured)


def _resume(report: Report, pairs: Pairs, folder: Path, found: dict[str, Any]) -> None:
    """Trains without an interruption, and in a new process from the state in the middle; compares the bits."""
    half = 1 if report.miniature else 10
    plain = digits_on(report.device, pairs)
    _seconds(plain, 1 if report.miniature else 5)
    usual = _seconds(plain, half)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        deterministic()
        try:
            whole = digits_on(report.device, pairs)
            _seconds(whole, half)
            careful = None if report.miniature else _seconds(whole, half)
            torch.save({"state": kept(whole), "step": whole.step_count}, folder / STATE)
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.resume", str(folder), str(report.device), str(half)]
            )
            for _ in range(half):
                whole.step()
            code = process.wait(max(report.left, 60 if report.miniature else 1))
        finally:
            torch.use_deterministic_algorithms(False)
    found["withoutDeterminism"] = sorted(
        {str(w.message).splitlines()[0] for w in heard if "determinis" in str(w.message)}
    )
    found["costOfDeterminism"] = careful / usual if careful else None
    if code:
        raise RuntimeError(f"the resumed process ended with exit code {code}")
    resumed = torch.load(folder / RESUMED, map_location="cpu", weights_only=True)["state"]
    ours, theirs = (
        [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)] for state in (kept(whole), resumed)
    )
    equal = len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    found |= {"tensors": len(ours), "identical": equal}
    print(f"  resumed: {'the same bits' if equal else 'OTHER BITS'}; determinism costs {found['costOfDeterminism']}")
    if not equal:
        report.fail("resumed: bits", "they differ")


def _curve(report: Report, pairs: Pairs, curve: list[dict[str, float]], found: dict[str, Any]) -> None:
    length = min(CURVE, len(curve))
    distillation = digits_on(torch.device("cpu"), pairs)
    losses = [distillation.step().losses for _ in range(length)]
    worst = 0.0
    for name in losses[0]:
        ours, theirs = (sum(step[name] for step in part[length // 2 : length]) for part in (curve, losses))
        worst = max(worst, abs(ours - theirs) / max(abs(theirs), 1e-2))
    found |= {"steps": length, "difference": worst, "tolerance": CURVE_TOLERANCE}
    if not worst <= CURVE_TOLERANCE:
        report.fail("curve: tolerance", f"{worst:.3g}")


def _seconds(distillation: Distillation, steps: int) -> float:
    _finish(distillation.device)
    started = time.perf_counter()
    for _ in range(steps):
        distillation.step()
    _finish(distillation.device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
